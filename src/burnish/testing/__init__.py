"""What tests are built from: contract suites for plug points and stand-ins that really work. Not imported by the server."""

from burnish.testing.job_context import LocalJobContext

__all__ = ["LocalJobContext"]
