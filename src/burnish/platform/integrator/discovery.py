"""Finds instances that do not register themselves: static base URLs, and DNS names that are resolved again and again.

What is found is asked for its ``/describe`` (behind the allow-list) and registered under an id made of its address, so
that every process may look and find the same rows. An address that its name no longer leads to, twice in a row, is
drained; while the resolver does not answer, what was found last stays.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.resolver

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import BurnishError, Conflict
from burnish.core.protocol import Registration
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.infra.http import Transport
from burnish.infra.loop import Periodic
from burnish.platform.integrator import network, service, store
from burnish.platform.integrator.probing import describe

log = logging.getLogger(__name__)

_SOONEST_SECONDS, _LATEST_SECONDS = 5.0, 300.0
_DESCRIBE_SECONDS = 3.0
_ABSENT_UNTIL_DRAINED = 2
_MOST_ADDRESSES = 1000
_FOUND = frozenset({"static", "dns"})
"""How instances are found that are discovery's to drain."""


@dataclass(frozen=True)
class Target:
    """One base URL that an entry of the configuration leads to."""

    url: str
    weight: float | None = None

    @property
    def component_id(self) -> str:
        """The id under which it is registered."""
        parts = urlsplit(self.url)
        host = (parts.hostname or "").replace(":", "-").strip("-.") or "host"
        path = parts.path.strip("/").replace("/", ".")
        return f"at-{host}-{parts.port or (443 if parts.scheme == 'https' else 80)}{'.' + path if path else ''}"[:255]


@dataclass(frozen=True)
class Resolved:
    """What an entry leads to at the moment, and for how long that holds."""

    targets: tuple[Target, ...]
    ttl: float


class ResolverAway(Exception):
    """The resolver does not answer; what was found last stays."""


class Resolver(Protocol):
    """Resolves the names of the configuration."""

    async def addresses(self, name: str) -> tuple[list[str], float]:
        """Return the addresses of a name, and their TTL; none if there are none.

        Raises:
            ResolverAway: there is no answer.
        """

    async def services(self, name: str) -> tuple[list[tuple[str, int, int]], float]:
        """Return target, port and weight of a name's SRV records of the best priority, and their TTL.

        Raises:
            ResolverAway: there is no answer.
        """


class DnsResolver:
    """Asks the resolvers of ``/etc/resolv.conf``, or those that are given."""

    def __init__(self, nameservers: Sequence[str] = (), port: int = 53, timeout: float = 3.0) -> None:
        self._nameservers, self._port, self._timeout = list(nameservers), port, timeout

    async def addresses(self, name: str) -> tuple[list[str], float]:
        """See :class:`Resolver`."""
        found: list[str] = []
        ttls: list[float] = []
        for kind in ("A", "AAAA"):
            answer = await self._ask(name, kind)
            if answer is not None and answer.rrset is not None:
                found += [str(record.address) for record in answer.rrset]
                ttls.append(float(answer.rrset.ttl))
        return found[:_MOST_ADDRESSES], min(ttls, default=0.0)

    async def services(self, name: str) -> tuple[list[tuple[str, int, int]], float]:
        """See :class:`Resolver`."""
        answer = await self._ask(name, "SRV")
        if answer is None or answer.rrset is None:
            return [], 0.0
        records = list(answer.rrset)[:_MOST_ADDRESSES]
        best = min(record.priority for record in records)
        found = [
            (str(record.target).rstrip("."), int(record.port), int(record.weight))
            for record in records
            if record.priority == best and str(record.target) != "."
        ]
        return found, float(answer.rrset.ttl)

    async def _ask(self, name: str, kind: str) -> dns.resolver.Answer | None:
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
            if self._nameservers:
                resolver.nameservers, resolver.port = self._nameservers, self._port
            return await resolver.resolve(name, kind, lifetime=self._timeout, search=True)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        except (dns.exception.DNSException, OSError) as error:
            raise ResolverAway(str(error) or type(error).__name__) from error


@dataclass
class _Entry:
    """One entry of the configuration, and what is remembered of it."""

    text: str
    due: float = 0.0
    targets: tuple[Target, ...] = ()
    absent: dict[str, int] = field(default_factory=dict)
    """How often in a row a target was missing, by URL."""
    known: bool = False
    """It has been resolved at least once."""


class Discovery(Periodic):
    """Finds instances, and drains those that vanish."""

    def __init__(
        self, database: Database, settings: Callable[[], IntegratorConfiguration],
        transport: Callable[[str, str], Transport], *, resolver: Resolver | None = None,
    ) -> None:  # fmt: skip
        super().__init__(self.look, _SOONEST_SECONDS, "component-discovery")
        self._database = database
        self._settings = settings
        self._transport = transport
        self._resolver: Resolver = resolver or DnsResolver()
        self._entries: dict[str, _Entry] = {}

    async def look(self) -> None:
        """Resolve what is due, register what is new, drain what has vanished."""
        settings = self._settings()
        wanted = (*settings.static, *settings.dns)
        self._entries = {text: self._entries.get(text) or _Entry(text) for text in wanted}
        await self._drain_unlisted(frozenset(wanted))
        for entry in self._entries.values():
            if time.monotonic() >= entry.due:
                await self._resolve(entry, static=entry.text in settings.static)
            await self._add_missing(entry, "static" if entry.text in settings.static else "dns")

    async def _resolve(self, entry: _Entry, *, static: bool) -> None:
        try:
            found = Resolved((Target(entry.text.rstrip("/")),), _LATEST_SECONDS) if static else await self._named(entry)
        except ResolverAway as error:
            log.warning("discovery: %s cannot be resolved, what was found last stays: %s", entry.text, error)
            entry.due = time.monotonic() + _SOONEST_SECONDS
            return
        except ValueError as error:
            log.error("discovery: %s is no entry that can be resolved: %s", entry.text, error)
            entry.due = time.monotonic() + _LATEST_SECONDS
            return
        present = {target.url for target in found.targets}
        known = {one.url for one in entry.targets} | (set() if entry.known else await self._recorded(entry))
        for url in known - present:
            entry.absent[url] = entry.absent.get(url, 0) + 1
        vanished = {url for url, times in entry.absent.items() if times >= _ABSENT_UNTIL_DRAINED}
        entry.absent = {url: n for url, n in entry.absent.items() if url not in present | vanished}
        await self._drain(entry, vanished, f"{entry.text} no longer leads to it")
        kept = tuple(one for one in entry.targets if one.url in entry.absent)
        entry.targets, entry.known = (*found.targets, *kept), True
        soon = _SOONEST_SECONDS if entry.absent else min(max(found.ttl, _SOONEST_SECONDS), _LATEST_SECONDS)
        entry.due = time.monotonic() + soon

    async def _named(self, entry: _Entry) -> Resolved:
        form, _, rest = entry.text.partition(":")
        if form == "a":
            name, _, port = rest.rpartition(":")
            addresses, ttl = await self._resolver.addresses(name)
            return Resolved(tuple(Target(_url(one, int(port))) for one in addresses), ttl)
        if form != "srv":
            raise ValueError("it begins with neither srv: nor a:")
        services, ttl = await self._resolver.services(rest)
        mean = sum(weight for *_, weight in services) / max(1, len(services))
        return Resolved(
            tuple(Target(_url(host, port), weight / mean if mean else None) for host, port, weight in services), ttl
        )

    async def _recorded(self, entry: _Entry) -> set[str]:
        """Return what an earlier process found by this entry."""
        async with self._database.read() as session:
            rows = await store.found_by(session, _FOUND)
        return {row.api_endpoint or "" for row in rows if row.found_by == entry.text and row.drain_until is None}

    async def _add_missing(self, entry: _Entry, source: service.Source) -> None:
        urls = [target.url for target in entry.targets if target.url not in entry.absent]
        if not urls:
            return
        async with self._database.read() as session:
            there = await store.at_endpoints(session, urls)
        by_themselves = {url for url, sources in there.items() if sources - _FOUND and sources & _FOUND}
        await self._drain(entry, by_themselves, "it registers itself")
        missing = [target for target in entry.targets if target.url in urls and target.url not in there]
        await asyncio.gather(*(self._add(target, entry, source) for target in missing[:20]))

    async def _add(self, target: Target, entry: _Entry, source: service.Source) -> None:
        settings = self._settings()
        try:
            await network.check_endpoint(target.url, entry.text, settings.allowed_networks)
            description = await describe(self._transport(f"{target.component_id} found", target.url), _DESCRIBE_SECONDS)
            registration = Registration(
                component_id=target.component_id, component_type=description.component_type,
                name=f"{description.component_type[:100]} at {target.url}"[:255], version=description.version[:50],
                health_endpoint=f"{target.url}/health", api_endpoint=target.url, metadata={},
            )  # fmt: skip
            origin = service.Origin(source, found_by=entry.text, weight=target.weight)
            async with self._database.write() as session:
                await service.register(session, registration, origin=origin, lease_seconds=settings.lease_seconds)
        except Conflict as error:
            log.warning("discovery: %s at %s: %s", entry.text, target.url, error.message)
        except BurnishError as error:
            log.info("discovery: %s at %s is not to be had yet: %s", entry.text, target.url, error.message)
        except ValueError as error:
            log.warning("discovery: %s at %s describes itself oddly: %s", entry.text, target.url, error)

    async def _drain_unlisted(self, wanted: frozenset[str]) -> None:
        await self._drain_where(lambda found_by, _: found_by not in wanted, "its entry is no longer configured")

    async def _drain(self, entry: _Entry, urls: set[str], reason: str) -> None:
        if urls:
            await self._drain_where(lambda found_by, url: found_by == entry.text and url in urls, reason)

    async def _drain_where(self, which: Callable[[str, str], bool], reason: str) -> None:
        async with self._database.read() as session:
            rows = await store.found_by(session, _FOUND)
        gone = [
            row.component_id
            for row in rows
            if row.status != InstanceState.DRAINING and which(row.found_by or "", row.api_endpoint or "")
        ]
        for component_id in gone:
            async with self._database.write() as session:
                row = await store.find(session, component_id, lock=True)
                if row is not None and row.source in _FOUND:
                    await service.drain(session, row, reason)


def _url(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"
