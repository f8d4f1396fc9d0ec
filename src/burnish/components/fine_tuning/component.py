"""Puts the component together."""

from burnish.components.fine_tuning.kinds import KINDS
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.runtime import JobRuntime

COMPONENT_TYPE = "fine_tuning"


def build(runtime: JobRuntime) -> Component:
    """Return the component."""
    return Component(COMPONENT_TYPE, component_app(COMPONENT_TYPE, KINDS, runtime))
