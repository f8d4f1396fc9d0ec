"""Connections to instances outside this process: made only to addresses that are allowed, kept while they are used."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from burnish.core.errors import BurnishError
from burnish.infra.http import Transport, Unreachable
from burnish.infra.http_client import HttpTransport
from burnish.platform.integrator.network import CheckedResolver, Networks, check_literal


@dataclass
class Way:
    """The connections to one endpoint."""

    endpoint: str
    transport: Transport
    calls: int = 0
    """Calls that are on their way, or whose answers are being read."""
    retired: bool = False


@dataclass
class Ways:
    """The ways of one process, by component_id."""

    networks: Networks
    _ways: dict[str, Way] = field(default_factory=dict)
    _allowed: tuple[str, ...] = ()
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    def to(self, key: str, endpoint: str) -> Transport:
        """Return the connections to an endpoint.

        Raises:
            Unreachable: it names an address that may not be called; nothing was sent.
        """
        return self.way(key, endpoint).transport

    def way(self, key: str, endpoint: str) -> Way:
        """Return the way to an endpoint, made anew when the endpoint or the allowed networks changed.

        Raises:
            Unreachable: it names an address that may not be called; nothing was sent.
        """
        if (allowed := tuple(self.networks())) != self._allowed:
            self.keep_only(())
            self._allowed = allowed
        found = self._ways.get(key)
        if found is not None and found.endpoint == endpoint:
            return found
        try:
            check_literal(endpoint, allowed)
        except BurnishError as error:
            raise Unreachable(error.message, sent=False, where=endpoint, hint=error.hint) from error
        if found is not None:
            self._retire(key)
        made = self._ways[key] = Way(endpoint, HttpTransport(endpoint, resolver=CheckedResolver(self.networks)))
        return made

    def keep_only(self, keys: Iterable[str]) -> None:
        """Give up all other ways; calls that are under way end in peace."""
        for key in set(self._ways) - set(keys):
            self._retire(key)

    def ended(self, way: Way) -> None:
        """Note that a call ended."""
        way.calls -= 1
        if way.retired and way.calls <= 0:
            self._close(way)

    async def close(self) -> None:
        """Close all connections."""
        self.keep_only(())
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _retire(self, key: str) -> None:
        way = self._ways.pop(key)
        way.retired = True
        if way.calls <= 0:
            self._close(way)

    def _close(self, way: Way) -> None:
        closing = asyncio.create_task(way.transport.close(), name="component-way-closes")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
