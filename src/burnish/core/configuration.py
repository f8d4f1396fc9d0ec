"""The configuration: everything that can be set while Burnish runs, as one model. Pure; no files, no database.

Each field's ``json_schema_extra`` says how it may be changed (:func:`hot`, :func:`cold`); its description is the
documentation. A process reads one immutable :class:`Configuration` at a time, whole. How it is put together from its
layers, and how a change reaches every process, is ``burnish.platform.configuration``.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from burnish.core.settings import Settings
from burnish.core.specs.base import digest_of

Change = Literal["hot", "restart"]


def hot(default: Any, description: str, *, sensitive: bool = False, **rules: Any) -> Any:
    """Declare a field whose change every process obeys at once. ``sensitive``: only administrators see its value."""
    extra: dict[str, JsonValue] = {"change": "hot", "sensitive": sensitive}
    return Field(default=default, description=description, json_schema_extra=cast(Any, extra), **rules)


def cold(default: Any, description: str, *, sensitive: bool = False, **rules: Any) -> Any:
    """Declare a field whose change needs a restart; the platform says so where it is changed and shown."""
    extra: dict[str, JsonValue] = {"change": "restart", "sensitive": sensitive}
    return Field(default=default, description=description, json_schema_extra=cast(Any, extra), **rules)


class Section(BaseModel):
    """Base of the sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rate(Section):
    """A token bucket, and a quota beside it."""

    requests_per_second: float = hot(50.0, "Requests a second on average; 0 lifts the limit", ge=0)
    burst: int = hot(100, "Requests that may come at once", ge=1)
    requests_per_day: int = hot(0, "Requests a day (UTC), however they are spread; 0: no quota", ge=0)


class AnonymousConfiguration(Section):
    """What is left for requests without a credential: to log in, to read the documentation. Probes are always answered."""

    per_address: Rate = hot(
        Rate(requests_per_second=20, burst=200), "Limit of each client address; of IPv6, of each /64 network"
    )
    unknown_keys: Rate = hot(
        Rate(requests_per_second=50, burst=500),
        "Limit of each client address for keys that a process has to look up: those that it has not seen lately",
    )
    max_in_flight: int = hot(100, "Of them, that one process answers at once; they take no other's place", ge=1)
    address_share: float = hot(0.1, "Share of them that one client address may take (of IPv6, one network)", gt=0, le=1)
    max_body_bytes: int = hot(4096, "Largest body", ge=1024)
    body_seconds: float = hot(5.0, "Longest silence inside a body", gt=0)


class GatewayConfiguration(Section):
    """Limits and timeouts of the gateway."""

    per_key: Rate = hot(Rate(requests_per_second=200, burst=400), "Limit of each key")
    per_project: Rate = hot(Rate(requests_per_second=1000, burst=2000), "Limit of each project")
    per_route: dict[str, Rate] = hot(
        {}, "Limit of each key on one route, by the route's template (`/v1/chat/completions`)"
    )
    anonymous: AnonymousConfiguration = hot(AnonymousConfiguration(), "Requests without a credential")
    requests_per_day: dict[str, int] = hot(
        {}, "Quotas a day (UTC) of single projects, instead of `per_project.requests_per_day`; 0 lifts it"
    )
    max_in_flight: int = hot(
        1000, "Requests that one process answers at once; above it batch requests are refused first", ge=1
    )
    batch_share: float = hot(0.5, "Share of `max_in_flight` that batch requests may take", gt=0, le=1)
    caller_share: float = hot(
        0.5, "Share of `max_in_flight` that one user or service account may take, with all keys together", gt=0, le=1
    )
    max_body_bytes: int = hot(16 << 20, "Largest body of a request that is not an upload", ge=1024)
    max_upload_bytes: int = hot(10 << 30, "Largest upload", ge=1024)
    max_response_bytes: int = hot(0, "Largest answer that is not a stream; 0 lifts the limit", ge=0)
    request_timeout_seconds: float = hot(300.0, "Until an answer must have begun", gt=0)
    idle_timeout_seconds: float = hot(
        300.0, "Longest silence inside an answer; event streams send comments more often", gt=0
    )
    trusted_proxies: tuple[str, ...] = hot(
        (), "Networks of proxies in front whose `X-Forwarded-For` and `-Proto` are believed; this machine's always are",
        sensitive=True,
    )  # fmt: skip
    cors_origins: tuple[str, ...] = hot((), "Origins whose pages may ask (`https://console.example.org`)")
    drain_seconds: float = hot(10.0, "That requests in flight get to be answered when a process is told to end", ge=0)
    authenticated_stale_seconds: float = hot(
        900.0, "How long a key that was seen lately is honoured while the database is away", ge=0
    )


class IntegratorConfiguration(Section):
    """Finding components, looking after them, choosing between them."""

    probe_seconds: float = hot(5.0, "Between health checks of an instance", gt=0)
    probe_timeout_seconds: float = hot(3.0, "Until a health check is late", gt=0)
    failures_until_unhealthy: int = hot(
        4, "Health checks failed in a row until an instance is unhealthy (more than 3)", ge=1
    )
    successes_until_healthy: int = hot(2, "Health checks answered in a row until it is healthy again", ge=1)
    lease_seconds: float = hot(30.0, "Without a heartbeat and an answer for this long an instance is lost", gt=0)
    lost_until_moved_seconds: float = hot(
        60.0, "An instance lost for this long has its interrupted jobs resumed elsewhere", gt=0
    )
    forget_lost_seconds: float = hot(86_400.0, "A lost instance is forgotten after this long", gt=0)
    retry_budget_ratio: float = hot(0.2, "Retries by requests, at most, over the last ten seconds", ge=0, le=1)
    ejection_error_ratio: float = hot(
        0.5, "An instance whose calls fail more often is left out for a while", gt=0, le=1
    )
    ejection_seconds: float = hot(10.0, "For how long, the first time; twice as long each next time", gt=0)
    weights: dict[str, float] = hot({}, "Share of the calls that an instance gets, by component_id; 1 by default")
    static: tuple[str, ...] = cold((), "Base URLs of instances that are always there (`http://10.0.0.7:8001`)")
    dns: tuple[str, ...] = cold(
        (), "Names that are resolved again and again: `srv:_burnish._tcp.example.org`, `a:echo.default.svc:8001`"
    )
    allowed_networks: tuple[str, ...] = hot(
        ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
        "Networks that a registered endpoint may lie in; metadata addresses never", sensitive=True,
    )  # fmt: skip
    registrations_per_minute: int = hot(600, "Registrations that are accepted from one credential a minute", ge=1)


GroupBinding = Annotated[str, Field(pattern=r"^(\*|[a-z0-9][a-z0-9_-]*)/(viewer|engineer|administrator)$")]
"""``project/role``; the project ``*`` is all of them."""


class OidcConfiguration(Section):
    """Login by an OpenID Connect provider."""

    issuer: str | None = hot(None, "URL of the provider; none: no such login")
    client_id: str = hot("burnish", "Our id there")
    client_secret: str | None = hot(
        None, "`secret://name` of our secret there; none for a public client (PKCE)", sensitive=True,
        pattern=r"^secret://[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    )  # fmt: skip
    scopes: tuple[str, ...] = hot(("openid", "email", "profile"), "What we ask for")
    roles_claim: str | None = hot(None, "Claim that lists the user's groups")
    role_bindings: dict[str, str] = hot(
        {}, "Role by group: `ml-team: default/engineer`, `admins: */administrator`", sensitive=True
    )
    default_role: Literal["viewer", "engineer"] | None = hot(
        None, "Role in project `default` of whoever can log in; none: an administrator gives it"
    )


class IdentityConfiguration(Section):
    """Keys and sessions."""

    session_seconds: float = hot(43_200.0, "A login of the page or the CLI ends after this long", gt=0)
    public_url: str | None = hot(
        None,
        "URL under which browsers reach Burnish, for logins; the request's own by default",
        pattern=r"^https?://[^\s/]+",
    )
    key_days: int = hot(0, "Days that a new key lives unless told otherwise; 0: until it is revoked", ge=0)
    oidc: OidcConfiguration = hot(OidcConfiguration(), "Login by an OpenID Connect provider")


class JobsConfiguration(Section):
    """Jobs and their hosts."""

    cancel_grace_seconds: float = cold(10.0, "From TERM to KILL", ge=0)
    disk_reserve_bytes: int = cold(512 << 20, "Free space below which nothing is accepted", ge=0)


class LoggingConfiguration(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = hot("info", "The least that is logged")


class Configuration(Section):
    """Everything that can be set while Burnish runs."""

    gateway: GatewayConfiguration = hot(GatewayConfiguration(), "The gateway")
    integrator: IntegratorConfiguration = hot(IntegratorConfiguration(), "Components")
    identity: IdentityConfiguration = hot(IdentityConfiguration(), "Who may do what")
    jobs: JobsConfiguration = hot(JobsConfiguration(), "Jobs")
    logging: LoggingConfiguration = hot(LoggingConfiguration(), "Logs")

    def digest(self) -> str:
        """Return a hash of all values: equal configurations, equal digests."""
        return digest_of(self.model_dump(mode="json"))


Current = Callable[[], Configuration]
"""Returns the configuration as it is now; parts take it and call it for every decision, and keep no copy."""


def defaults() -> Configuration:
    """Return the configuration without any layer over it (tests, and processes without a platform)."""
    return _DEFAULTS


_DEFAULTS = Configuration()

SAME_AS: Mapping[str, str] = MappingProxyType(
    {
        "log_level": "logging.level",
        "cancel_grace_seconds": "jobs.cancel_grace_seconds",
        "disk_reserve_bytes": "jobs.disk_reserve_bytes",
        "upload_max_bytes": "gateway.max_upload_bytes",
    }
)
"""Fields of the process's set-up that mean a key: given there, they are that key's process layer."""


@dataclass(frozen=True)
class Setting:
    """One key of the schema: a field that holds a value of its own (maps and lists are one value each)."""

    key: str
    default: JsonValue
    description: str
    change: Change
    sensitive: bool

    @property
    def read_permission(self) -> str:
        """What a caller needs to see its value."""
        return "configuration:write" if self.sensitive else "configuration:read"

    @property
    def write_permissions(self) -> tuple[str, ...]:
        """What a caller needs to change it: who may do what is not changed by whoever may change limits."""
        own = ("identity:write",) if self.key.startswith("identity.") else ()
        return ("configuration:write", *own)


@functools.cache
def schema() -> Mapping[str, Setting]:
    """Return every key with what is known of it, in the order of the sections."""
    return MappingProxyType({one.key: one for one in _walk(_DEFAULTS, "")})


@functools.cache
def sections() -> frozenset[str]:
    """Return the names under which keys stand: ``gateway``, ``gateway.per_key``, ..."""
    parts = (key.split(".") for key in schema())
    return frozenset(".".join(path[:length]) for path in parts for length in range(1, len(path)))


def _walk(section: BaseModel, prefix: str) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        yield Setting(
            key=prefix + name,
            default=section.model_dump(mode="json")[name],
            description=field.description or "",
            change="restart" if extra.get("change") == "restart" else "hot",
            sensitive=bool(extra.get("sensitive")),
        )


def values_of(configuration: Configuration) -> dict[str, JsonValue]:
    """Return the value of every key, as JSON."""
    return {key: value_at(configuration, key) for key in schema()}


def value_at(configuration: Configuration, key: str) -> JsonValue:
    """Return one key's value, as JSON."""
    *path, name = key.split(".")
    section: BaseModel = configuration
    for part in path:
        section = getattr(section, part)
    value: JsonValue = section.model_dump(mode="json", include={name})[name]
    return value


def nested(values: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Return values by key as sections within sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        section = found
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return found


def given_in(settings: Settings) -> dict[str, JsonValue]:
    """Return, by key, what the process's set-up says of the configuration (:data:`SAME_AS`)."""
    return {key: getattr(settings, name) for name, key in SAME_AS.items() if name in settings.model_fields_set}


def of_settings(settings: Settings) -> Current:
    """Return the configuration of a process without a platform: the defaults, and what its set-up says."""
    values = {key: setting.default for key, setting in schema().items()} | given_in(settings)
    fixed = Configuration.model_validate(nested(values))
    return lambda: fixed
