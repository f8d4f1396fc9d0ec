"""Every metric of Burnish, declared once: name, type, labels, help. What is not declared here is not exported.

Dashboards, alert rules and the documentation are generated from :data:`CATALOGUE`. Use a signal as prometheus_client
offers it: ``REQUESTS.labels(method="GET", route="/platform/health", status="200").inc()``. Labels have few values each:
routes as templates, never paths or ids.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from burnish.core.version import __version__
from burnish.infra.home import disk_free

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Buckets for requests; 2 s is the platform's promise."""
LONG_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
"""Buckets for jobs and executions."""


@dataclass(frozen=True)
class Signal:
    """The declaration of one metric."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


CATALOGUE: dict[str, Signal] = {}
"""Every declared metric by its exported name."""

REGISTRY = CollectorRegistry(auto_describe=True)
disable_created_metrics()  # type: ignore[no-untyped-call]


def _declare(kind: Literal["counter", "gauge", "histogram"], name: str, text: str, labels: tuple[str, ...]) -> None:
    if name in CATALOGUE:
        raise ValueError(f"the signal {name} is declared twice")
    CATALOGUE[name] = Signal(name, kind, text, labels)


def _counter(name: str, text: str, *labels: str) -> Counter:
    _declare("counter", name, text, labels)
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    _declare("gauge", name, text, labels)
    return Gauge(name, text, labels, registry=REGISTRY)


class Level:
    """What a gauge shows, counted up and down by one thread alone and too often for a lock: ``level.value += 1``."""

    __slots__ = ("value",)

    def __init__(self, gauge: Gauge) -> None:
        self.value = 0
        gauge.set_function(lambda: self.value)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
    _declare("histogram", name, text, labels)
    return Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)


# The platform's requests
REQUESTS = _counter("platform_requests_total", "HTTP requests answered", "method", "route", "status")
REQUEST_SECONDS = _histogram(
    "platform_request_duration_seconds", "From a request's arrival to the end of its answer", "method", "route"
)
REQUESTS_IN_PROGRESS = _gauge("platform_requests_in_progress", "HTTP requests being answered")
LIMITED = _counter(
    "platform_gateway_limited_total", "Requests refused by a rate limit or quota, by its setting", "limit"
)
LIMITS_LOCAL = _counter("platform_gateway_local_limits_total", "Requests limited by one process because Redis is away")
SHED = _counter("platform_gateway_shed_total", "Requests refused because the process was full or draining", "priority")
IN_FLIGHT = _gauge("platform_gateway_in_flight", "Requests that passed admission and are being answered", "priority")
OVERDUE = _counter("platform_gateway_overdue_total", "Requests ended by a timeout, by which one", "timeout")
REFUSED = _counter("platform_gateway_refused_total", "Connections closed because what came was no fit HTTP", "reason")

# This process and its machine, measured when they are read
MEMORY = _gauge("platform_memory_usage_bytes", "Resident memory of this server process")
CPU_SECONDS = _counter("platform_cpu_seconds_total", "Processor time of this server process")
OPEN_FILES = _gauge("platform_open_file_descriptors", "Open file descriptors of this server process")
UPTIME = _gauge("platform_uptime_seconds", "Since this server process started")
SYSTEM_MEMORY = _gauge("platform_system_memory_bytes", "Memory of the machine", "state")
SYSTEM_CPU = _gauge("platform_system_cpu_ratio", "Busy share of the machine's cores since the last reading")
DISK_FREE = _gauge("platform_disk_free_bytes", "Free space where the home and the artifacts are", "what")
LOOP_LAG = _gauge("platform_event_loop_lag_seconds", "How late the event loop ran its last timer")
BUILD = _gauge("platform_build_info", "1; the label says which Burnish this is", "version")

# Jobs and executions
ACTIVE_TRAINING_JOBS = _gauge("platform_active_training_jobs", "Training jobs that are starting or running")
JOBS = _gauge("platform_jobs", "Unfinished jobs, and those that ended lately, by state", "component_type", "state")
JOBS_FINISHED = _counter("platform_jobs_finished_total", "Jobs that ended", "component_type", "kind", "state")
JOB_SECONDS = _histogram(
    "platform_job_duration_seconds", "From a job's start to its end", "kind", "state", buckets=LONG_SECONDS
)
JOB_PENDING_SECONDS = _histogram(
    "platform_job_pending_seconds", "From a job's acceptance to its start", "kind", buckets=LONG_SECONDS
)
JOB_RESTARTS = _counter("platform_job_restarts_total", "Jobs started again because their host was lost", "kind")
QUEUE = _gauge("platform_queue_length", "What waits for resources", "queue")
EXECUTIONS = _gauge("platform_executions", "Workflow executions by state", "state")
EXECUTIONS_FINISHED = _counter("platform_executions_finished_total", "Executions that ended", "workflow_type", "state")
EXECUTION_SECONDS = _histogram(
    "platform_execution_duration_seconds", "From submit to end", "workflow_type", "state", buckets=LONG_SECONDS
)
STEP_ATTEMPTS = _counter("platform_step_attempts_total", "Attempts of steps that ended", "kind", "state")

# Reconcilers, events, database
RECONCILE_TURNS = _counter("platform_reconcile_turns_total", "Turns taken", "reconciler", "outcome")
RECONCILE_SECONDS = _histogram("platform_reconcile_turn_seconds", "Duration of a turn", "reconciler")
EVENTS = _counter("platform_events_total", "Events appended to the event log", "type")
FOLLOWERS = _gauge("platform_event_followers", "Streams that follow the event log")
DATABASE_UNAVAILABLE = _counter("platform_database_unavailable_total", "Units of work that the database did not serve")
DATABASE_AWAY = _gauge("platform_database_away", "1 while the database does not answer and what needs it is refused")

# Components
INSTANCES = _gauge("platform_component_instances", "Component instances by state", "component_type", "state")
COMPONENT_REQUESTS = _counter(
    "platform_component_requests_total", "Requests to components", "component_type", "outcome"
)
COMPONENT_SECONDS = _histogram(
    "platform_component_request_seconds", "Until a component's answer began", "component_type"
)
COMPONENT_RETRIES = _counter(
    "platform_component_retries_total",
    "Requests to components that were sent again elsewhere",
    "component_type",
    "reason",
)
COMPONENT_EJECTIONS = _counter(
    "platform_component_ejections_total", "Times an instance was left out because its calls failed", "component_type"
)
COMPONENT_CIRCUITS = _gauge(
    "platform_component_circuits", "Instances by their circuit here: closed, open, half_open", "component_type", "state"
)
INSTANCE_SECONDS = _gauge(
    "platform_component_instance_latency_seconds",
    "Until an instance's answers begin (of 100 instances at most)",
    "component_id",
)
PROBES_FAILED = _counter("platform_component_probe_failures_total", "Failed health checks", "component_type")

# Artifacts
ARTIFACTS_PUBLISHED = _counter("platform_artifacts_published_total", "Artifacts recorded", "kind")
ARTIFACTS_SWEPT = _counter("platform_artifacts_swept_total", "Artifacts removed because nothing referred to them")

# Serving
DEPLOYMENTS = _gauge("platform_deployments", "Deployments by state", "state")
REPLICAS = _gauge("platform_replicas", "Replica processes by state", "engine", "state")
GENERATIONS = _counter("platform_generations_total", "Generation requests", "deployment", "outcome")
GENERATIONS_IN_PROGRESS = _gauge("platform_generations_in_progress", "Generation requests being served", "deployment")
GENERATION_SECONDS = _histogram("platform_generation_duration_seconds", "From request to last token", "deployment")
FIRST_TOKEN_SECONDS = _histogram("platform_first_token_seconds", "From request to first token", "deployment")
TOKENS = _counter("platform_tokens_total", "Tokens read and written by models", "deployment", "direction")

BUILD.labels(version=__version__).set(1)

_process = psutil.Process()
_cpu_seconds = 0.0
_disks: dict[str, Path] = {}


def watch_disk(what: str, path: Path) -> None:
    """Have ``platform_disk_free_bytes{what=...}`` measured for the disk that holds ``path``."""
    _disks[what] = path


def set_counts(gauge: Gauge, counts: Mapping[str, int], states: Iterable[str], **labels: str) -> None:
    """Set a gauge with a ``state`` label from counts, zero where a state has none."""
    for state in states:
        gauge.labels(**labels, state=state).set(counts.get(state, 0))


def render() -> bytes:
    """Return all metrics in the Prometheus text format, this process and its machine measured now."""
    _measure()
    return generate_latest(REGISTRY)


def _measure() -> None:
    global _cpu_seconds
    with _process.oneshot():
        MEMORY.set(_process.memory_info().rss)
        OPEN_FILES.set(_process.num_fds())
        UPTIME.set(max(0.0, time.time() - _process.create_time()))
        used = _process.cpu_times()
    spent = used.user + used.system
    CPU_SECONDS.inc(max(0.0, spent - _cpu_seconds))
    _cpu_seconds = spent
    memory = psutil.virtual_memory()
    SYSTEM_MEMORY.labels(state="total").set(memory.total)
    SYSTEM_MEMORY.labels(state="available").set(memory.available)
    SYSTEM_CPU.set(psutil.cpu_percent(None) / 100)
    for what, path in _disks.items():
        DISK_FREE.labels(what=what).set(disk_free(path))
