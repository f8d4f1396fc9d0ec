"""Inputs from the platform's store: a component that shares it takes a reference for its caller's own.

The platform's rows say which project has which artifact, and a component has not these rows. The platform holds a spec
against them before it sends it, so what a spec names is its project's: it becomes known here, before the job is looked at.
"""

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException

from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.artifact_store.references import references_in
from burnish.infra.asgi import ASGIApp, Message, Receive, Send
from burnish.infra.database import Database
from burnish.platform.identity import Principal
from burnish.platform.identity.principal import SCOPE_KEY

_PATHS = frozenset({"/jobs", "/jobs/validate"})


class Adopting:
    """Notes the artifacts that a job's spec names, if the store has them. Stands behind the caller check."""

    def __init__(self, app: ASGIApp, database: Database, store: ArtifactStore) -> None:
        self._app = app
        self._database = database
        self._store = store

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, its artifacts noted."""
        caller = scope.get(SCOPE_KEY)
        if scope["type"] != "http" or scope["path"] not in _PATHS or not isinstance(caller, Principal):
            await self._app(scope, receive, send)
            return
        messages, refusal = await _read(receive)
        if refusal is None:
            await self._adopt(b"".join(one.get("body", b"") for one in messages), caller.project_id)
        waiting = iter(messages)

        async def again() -> Message:
            if (message := next(waiting, None)) is not None:
                return message
            if refusal is not None:
                raise refusal
            return await receive()

        await self._app(scope, again, send)

    async def _adopt(self, body: bytes, project_id: str) -> None:
        try:
            spec = json.loads(body)["spec"]
        except (ValueError, TypeError, KeyError):
            return  # whoever reads the request says what is wrong with it
        named = {ref.digest: ref for _, ref in references_in(spec)}
        there = await asyncio.to_thread(lambda: [ref for ref in named.values() if self._store.renew(ref.digest)])
        if not there:
            return
        async with self._database.write() as session:
            for ref in there:
                await artifacts.record(session, project_id, ref)


async def _read(receive: Receive) -> tuple[list[Message], HTTPException | None]:
    """Return the body's messages, and the refusal of a body that is too large (the app answers for it)."""
    messages: list[Message] = []
    try:
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())
    except HTTPException as refusal:
        return messages, refusal
    return messages, None
