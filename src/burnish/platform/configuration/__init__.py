"""Configuration and secrets: layers, versions by environment, hot reload in every process.

Invariants: a process obeys one configuration at a time, whole; a change is checked whole before any of it is stored, and
versions are never altered; a secret's value leaves by :meth:`Secrets.resolve` alone.
"""

from burnish.platform.configuration.file import check_file
from burnish.platform.configuration.live import LiveConfiguration
from burnish.platform.configuration.secrets import Secrets

__all__ = ["LiveConfiguration", "Secrets", "check_file"]
