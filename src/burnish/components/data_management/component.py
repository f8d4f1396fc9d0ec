"""Puts the component together."""

from burnish.components.data_management.adding import Adding
from burnish.components.data_management.api import router
from burnish.components.data_management.kinds import KINDS
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.runtime import JobRuntime

COMPONENT_TYPE = "data_management"
ROUTES = ("/platform/datasets",)


def build(runtime: JobRuntime) -> Component:
    """Return the component. It has no loop of its own and calls no other component."""
    adding = Adding(runtime.database, runtime.store, runtime.settings, runtime.configuration)
    routes = router(runtime.database, runtime.store, adding)
    return Component(COMPONENT_TYPE, component_app(COMPONENT_TYPE, KINDS, runtime, routers=[routes], routes=ROUTES))
