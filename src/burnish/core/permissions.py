"""What may be done, and by which role: one table, from which checks, OpenAPI and documentation follow.

A permission is ``object:verb``. A role is a set of them; a binding gives a subject a role in one project, or in all
(project ``*``). A key may carry fewer permissions than its owner's roles (scopes), never more.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

PERMISSIONS: Mapping[str, str] = MappingProxyType(
    {
        "component:read": "See components and their instances",
        "component:register": "Register and deregister instances, send their heartbeats",
        "component:work": "Give a component jobs by the component protocol (Burnish's own processes only)",
        "workflow:read": "See definitions, executions, their events and logs",
        "workflow:run": "Run, fork and retry workflows",
        "workflow:control": "Cancel, pause and resume executions",
        "workflow:approve": "Answer an execution that waits for an approval",
        "job:read": "See jobs and their logs",
        "job:control": "Cancel, pause and resume jobs",
        "dataset:read": "See and download datasets",
        "dataset:write": "Add, split and remove datasets",
        "model:read": "See models, versions, aliases and lineage",
        "model:write": "Register models and move aliases",
        "model:deploy": "Deploy models, change, roll back and stop deployments",
        "deployment:read": "See deployments, revisions and replicas",
        "inference:run": "Ask deployed models (`/v1`)",
        "metrics:read": "Read metrics and the state of the platform",
        "configuration:read": "Read the configuration, its versions and where each value comes from",
        "configuration:write": "Change the configuration and roll it back",
        "secret:read": "See the names of secrets (never their values)",
        "secret:write": "Set and remove secrets, rotate their keys",
        "identity:read": "See users, service accounts, projects, roles and keys",
        "identity:write": "Change users, service accounts, projects and roles; mint keys of service accounts (in all projects: of anyone); revoke keys",
        "key:write": "Mint, rotate and revoke one's own keys",
        "audit:read": "Read and verify the audit log",
    }
)
"""Every permission with what it allows."""

_READ = frozenset(
    {"component:read", "workflow:read", "job:read", "dataset:read", "model:read", "deployment:read", "metrics:read"}
)
_ENGINEER = _READ | {
    "workflow:run", "workflow:control", "workflow:approve", "job:control", "dataset:write", "model:write",
    "model:deploy", "inference:run", "configuration:read", "secret:read", "key:write",
}  # fmt: skip

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "viewer": _READ | {"key:write"},
        "engineer": _ENGINEER,
        "administrator": frozenset(PERMISSIONS) - {"component:work"},
        "component": frozenset({"component:register"}),
        "platform": frozenset({"component:work"}),
    }
)
"""Every role with its permissions. ``component`` is for the credentials of instances; ``platform`` is never given to
anybody: Burnish's own processes act under it on behalf of whoever submitted the work."""

GIVEN_ROLES = ("viewer", "engineer", "administrator")
"""The roles that people and service accounts are given."""

PLATFORM_WIDE = frozenset({"configuration:write", "secret:write", "component:register", "metrics:read"})
"""Permissions that only a binding to all projects gives: what they change or show is everybody's."""

EVERY_PROJECT = "*"
"""The project of a binding that holds in all of them."""


def permissions_of(roles: Iterable[str]) -> frozenset[str]:
    """Return what the roles allow together; an unknown role allows nothing."""
    return _together(frozenset(roles))


@lru_cache(1024)
def _together(roles: frozenset[str]) -> frozenset[str]:
    return frozenset().union(*(ROLES.get(role, frozenset()) for role in roles))
