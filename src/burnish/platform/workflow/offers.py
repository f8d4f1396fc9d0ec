"""What steps can be made of: the kinds that components offer now, and those of components that are away.

A component that goes takes nothing with it: definitions that name it still validate as far as its schemas tell, and
whoever submits one is told that it is away, and since when.
"""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from burnish.core.errors import FieldProblem
from burnish.core.protocol import KindOffer
from burnish.infra.database import Database, utcnow
from burnish.infra.loop import Periodic
from burnish.platform.workflow import store

_LOOK_SECONDS = 1.0
_REREAD_SECONDS = 10.0
_AWAY_AFTER_SECONDS = 3.0
"""For so long nothing is said of a type that is gone: its instance may be registering anew."""

Kinds = Mapping[tuple[str, str], KindOffer]


class Offering(Protocol):
    """What knows the kinds that are offered at the moment: the integrator."""

    def kinds(self) -> Kinds:
        """Return every kind that is offered at the moment, by component type and name."""


class Known(Protocol):
    """What validation asks."""

    def kinds(self) -> Kinds:
        """Return every kind that is or was offered."""

    def away(self) -> Mapping[str, datetime]:
        """Return the types of which no instance is known, each with the time since when."""


class OfferedNow:
    """Knows what is offered at the moment and nothing else."""

    def __init__(self, offering: Offering) -> None:
        self._offering = offering

    def kinds(self) -> Kinds:
        """Return every kind that is offered."""
        return self._offering.kinds()

    def away(self) -> Mapping[str, datetime]:
        """Return none."""
        return {}


class KnownOffers(Periodic):
    """Remembers in the database what was offered. One a process; several write the same."""

    def __init__(self, database: Database, offering: Offering) -> None:
        super().__init__(self.look, _LOOK_SECONDS, "component-offers")
        self._database = database
        self._offering = offering
        self._kept: dict[str, tuple[KindOffer, ...]] = {}
        self._away: dict[str, datetime] = {}
        self._missed: dict[str, float] = {}
        self._read_at = float("-inf")

    async def start(self) -> None:
        """Read what was known, then watch."""
        await self.look()
        await super().start()

    def kinds(self) -> Kinds:
        """Return every kind that is offered, and those of types that are away as they last were."""
        now = dict(self._offering.kinds())
        present = {component_type for component_type, _ in now}
        for component_type, offers in self._kept.items():
            if component_type not in present:
                now.update({(component_type, offer.name): offer for offer in offers})
        return now

    def away(self) -> Mapping[str, datetime]:
        """Return the types of which no instance is known, each with the time since when."""
        present = {component_type for component_type, _ in self._offering.kinds()}
        gone = (one for one in self._kept if one not in present)
        return {one: self._away.get(one) or utcnow() for one in gone}

    async def look(self) -> None:
        """Compare what is offered with what is kept, and keep what changed."""
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            await self._read()
        present: dict[str, list[KindOffer]] = {}
        for (component_type, _), offer in sorted(self._offering.kinds().items()):
            present.setdefault(component_type, []).append(offer)
        now = time.monotonic()
        self._missed = {one: self._missed.get(one, now) for one in self._kept if one not in present}
        changed = {one: tuple(offers) for one, offers in present.items() if self._kept.get(one) != tuple(offers)}
        back = {one for one in present if one in self._away}
        gone = {one for one, at in self._missed.items() if one not in self._away and now - at >= _AWAY_AFTER_SECONDS}
        if changed or back or gone:
            await self._write(changed, back, gone)
            await self._read()

    async def _read(self) -> None:
        async with self._database.read() as session:
            rows = await store.offers(session)
        self._kept = {name: tuple(KindOffer.model_validate(one) for one in row.kinds) for name, row in rows.items()}
        self._away = {name: row.away_since for name, row in rows.items() if row.away_since is not None}
        self._read_at = time.monotonic()

    async def _write(self, changed: Mapping[str, tuple[KindOffer, ...]], back: set[str], gone: set[str]) -> None:
        async with self._database.write() as session:
            for name, offers in changed.items():
                await store.keep_offer(session, name, [one.model_dump(mode="json") for one in offers])
            await store.mark_away(session, gone)
            await store.mark_back(session, back)


def away_problem(where: str, component: str, since: datetime) -> FieldProblem:
    """Return what is told of a step whose component is known but away."""
    return FieldProblem(
        where=where, message=f"component {component!r} is known, but away since {since:%Y-%m-%d %H:%M:%S} UTC",
        hint="start it again: it registers itself; `burnish components` shows what is there",
    )  # fmt: skip
