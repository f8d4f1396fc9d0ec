"""Puts the component together."""

from fastapi import FastAPI

from burnish.components.evaluation.kinds import KINDS
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.runtime import JobRuntime

COMPONENT_TYPE = "evaluation"


def build(runtime: JobRuntime) -> FastAPI:
    """Return the component's app."""
    return component_app(COMPONENT_TYPE, KINDS, runtime)
