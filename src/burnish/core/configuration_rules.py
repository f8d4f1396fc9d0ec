"""What the types of single fields cannot say of a configuration: forms of texts, and fields that must fit each other."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from burnish.core.configuration import Configuration, GatewayConfiguration, IntegratorConfiguration, OidcConfiguration
from burnish.core.errors import FieldProblem
from burnish.core.permissions import GIVEN_ROLES

_DNS = re.compile(r"^(srv:[A-Za-z0-9._-]+|a{1,4}:[A-Za-z0-9._-]+:[0-9]{1,5})$")


def problems_of(configuration: Configuration) -> tuple[FieldProblem, ...]:
    """Return everything that is wrong with a configuration whose fields are each of the right type; by key."""
    return (
        *_gateway(configuration.gateway),
        *_integrator(configuration.integrator),
        *_oidc(configuration.identity.oidc),
    )


def _gateway(gateway: GatewayConfiguration) -> Iterator[FieldProblem]:
    if gateway.batch_share * gateway.max_in_flight < 1:
        yield FieldProblem(
            where="gateway.batch_share",
            message=f"{gateway.batch_share:g} of gateway.max_in_flight ({gateway.max_in_flight}) is less than one request",
            hint="raise one of the two, else no batch request is ever answered",
        )
    for route in gateway.per_route:
        if not route.startswith("/"):
            hint = "take the template from /openapi.json, such as /v1/chat/completions"
            yield FieldProblem(where="gateway.per_route", message=f"{route!r} is no route", hint=hint)
    for project, quota in gateway.requests_per_day.items():
        if quota < 0:
            yield FieldProblem(where="gateway.requests_per_day", message=f"{quota} of {project!r} is below 0")
    yield from _networks("gateway.trusted_proxies", gateway.trusted_proxies)
    for origin in gateway.cors_origins:
        if origin != "*" and not _is_origin(origin):
            hint = "scheme, host and port alone: https://console.example.org"
            yield FieldProblem(where="gateway.cors_origins", message=f"{origin!r} is no origin", hint=hint)


def _integrator(integrator: IntegratorConfiguration) -> Iterator[FieldProblem]:
    for name in ("probe_seconds", "probe_timeout_seconds"):
        value = getattr(integrator, name)
        if value >= integrator.lease_seconds:
            yield FieldProblem(
                where=f"integrator.{name}",
                message=f"{value:g} s is not shorter than integrator.lease_seconds ({integrator.lease_seconds:g} s)",
                hint="an instance would be lost before it can be asked; raise the lease or ask more often",
            )
    if integrator.forget_lost_seconds < integrator.lost_until_moved_seconds:
        yield FieldProblem(
            where="integrator.forget_lost_seconds",
            message="a lost instance would be forgotten before its jobs are moved",
            hint=f"at least integrator.lost_until_moved_seconds ({integrator.lost_until_moved_seconds:g})",
        )
    yield from _networks("integrator.allowed_networks", integrator.allowed_networks)
    for component_id, weight in integrator.weights.items():
        if weight < 0:
            yield FieldProblem(where="integrator.weights", message=f"{weight:g} of {component_id!r} is below 0")
    for url in integrator.static:
        if not _is_http(url):
            yield FieldProblem(
                where="integrator.static", message=f"{url!r} is no http URL", hint="http://10.0.0.7:8001"
            )
    for name in integrator.dns:
        if not _DNS.match(name):
            hint = "srv:_burnish._tcp.example.org or a:echo.default.svc:8001"
            yield FieldProblem(
                where="integrator.dns", message=f"{name!r} is neither srv:NAME nor a:NAME:PORT", hint=hint
            )


def _networks(where: str, networks: Iterable[str]) -> Iterator[FieldProblem]:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield FieldProblem(where=where, message=str(error), hint="such as 10.0.0.0/8")


def _oidc(oidc: OidcConfiguration) -> Iterator[FieldProblem]:
    if oidc.issuer is not None and not _is_http(oidc.issuer):
        hint = "such as https://login.example.org/realms/main"
        yield FieldProblem(where="identity.oidc.issuer", message="is no http(s) URL", hint=hint)
    for group, binding in oidc.role_bindings.items():
        project, slash, role = binding.partition("/")
        if not slash or not project or role not in GIVEN_ROLES:
            hint = f"PROJECT/ROLE with a role of {', '.join(GIVEN_ROLES)}; * is every project"
            where = "identity.oidc.role_bindings"
            yield FieldProblem(where=where, message=f"{binding!r} of {group!r} is no binding", hint=hint)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_origin(origin: str) -> bool:
    return _is_http(origin) and re.fullmatch(r"https?://[^/?#@]+", origin) is not None
