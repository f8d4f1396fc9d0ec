"""Puts the component together. It offers no kinds yet; it registers, answers the protocol and has its room."""

from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.runtime import JobRuntime

COMPONENT_TYPE = "hyperparameter_optimization"


def build(runtime: JobRuntime) -> Component:
    """Return the component."""
    return Component(COMPONENT_TYPE, component_app(COMPONENT_TYPE, {}, runtime))
