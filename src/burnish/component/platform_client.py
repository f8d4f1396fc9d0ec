"""What a component asks of the platform over HTTP: to register it, to keep it, to forget it; and for its keys."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from burnish.core.errors import BurnishError, Conflict, NotFound, UpstreamFailed
from burnish.core.protocol import Registration
from burnish.infra.http import Request
from burnish.infra.http_client import HttpTransport
from burnish.infra.loop import Loop
from burnish.infra.problems import error_from_problem

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
GENERATION_HEADER = "burnish-generation"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_REFUSED_SECONDS = 15.0
_TIMEOUT_SECONDS = 10.0
_ANSWER_LIMIT = 1 << 20


class PlatformClient:
    """Calls the platform's API with this component's key."""

    def __init__(self, url: str, api_key: SecretStr | None) -> None:
        self.url = url.rstrip("/")
        self.generation: int | None = None
        """The number that the platform gave the latest registration, if it numbers them."""
        self._transport = HttpTransport(self.url)
        self._headers = {"accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key.get_secret_value()}"

    async def jwks(self) -> Mapping[str, Any]:
        """Return the public keys of caller tokens."""
        answer = await self.call("GET", "/platform/identity/jwks")
        if not isinstance(answer, dict):
            raise UpstreamFailed("the platform answered with no JWK set", where="/platform/identity/jwks")
        return answer

    async def call(self, method: str, path: str, body: Any = None, more: Mapping[str, str] = NO_HEADERS) -> Any:
        """Return the JSON of an answer. ``more``: headers.

        Raises:
            BurnishError: the platform refused, cannot be reached, or did not answer with JSON.
        """
        content = b"" if body is None else json.dumps(body).encode()
        headers = self._headers | dict(more) | ({} if body is None else {"content-type": "application/json"})
        request = Request(method, path, headers, content, deadline=time.time() + _TIMEOUT_SECONDS)
        async with self._transport.send(request) as response:
            text = await response.read(_ANSWER_LIMIT)
            generation = response.headers.get(GENERATION_HEADER, "")
        try:
            answer = json.loads(text) if text else None
        except ValueError as error:
            raise UpstreamFailed(f"{self.url}{path} answered {response.status} without JSON", where=path) from error
        if response.status >= 400:
            raise error_from_problem(answer if isinstance(answer, dict) else {}, response.status)
        if generation.isdecimal():
            self.generation = int(generation)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()


class Registrar(Loop):
    """Keeps a component registered: again whenever the platform has forgotten it, until it is deregistered."""

    def __init__(
        self, platform: PlatformClient, registration: Registration, *, seconds: float = HEARTBEAT_SECONDS,
        tell: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        super().__init__(self._keep, "component-registrar")
        self._platform = platform
        self._registration = registration
        self._path = f"/platform/components/{registration.component_id}"
        self._seconds = seconds
        self._tell = tell
        self._registered = False
        self._contested = False
        """Another process had taken its id, and it has registered again since."""
        self._told = ""

    async def stop(self) -> None:
        """Stop, and have the platform forget the component (if it can be reached)."""
        await super().stop()
        if not self._registered:
            return
        generation = self._platform.generation
        ours = NO_HEADERS if generation is None else {GENERATION_HEADER: str(generation)}
        try:
            await self._platform.call("DELETE", self._path, more=ours)
            self._tell(f"Deregistered at {self._platform.url}.")
        except BurnishError as error:
            log.warning("it could not be deregistered: %s", error.message)
        self._registered = False

    async def _keep(self) -> None:
        while True:
            wait = self._seconds
            try:
                if not self._registered or await self._forgotten():
                    await self._register()
                self._told = ""
            except BurnishError as error:
                wait = self._seconds if error.retryable else max(self._seconds, _REFUSED_SECONDS)
                self._complain(error)
            except Exception:
                log.exception("registering failed")
            await asyncio.sleep(wait)

    async def _register(self) -> None:
        await self._platform.call("POST", "/platform/components/register", self._registration.model_dump(mode="json"))
        self._registered = True
        self._tell(f"Registered at {self._platform.url} as {self._registration.component_id}.")

    async def _forgotten(self) -> bool:
        """Send a heartbeat; tell whether to register again.

        So it is when the platform knows this id no more, and once when another process has taken it; two that have one
        id would take it from each other for ever.

        Raises:
            Conflict: another process has it, and this one has asked for it already.
        """
        try:
            view = await self._platform.call(
                "POST", f"{self._path}/heartbeat", {"generation": self._platform.generation}
            )
        except NotFound:
            self._contested = False
            return True
        except Conflict:
            return self._ask_once_more()
        known = view.get("api_endpoint") if isinstance(view, dict) else None
        return known not in (None, self._registration.api_endpoint) and self._ask_once_more()

    def _ask_once_more(self) -> bool:
        if self._contested:
            raise Conflict(
                f"another process has registered as {self._registration.component_id}",
                hint="give each process an id of its own; this one gets no calls until the other is gone",
            )
        self._contested = True
        return True

    def _complain(self, error: BurnishError) -> None:
        if error.message != self._told:
            self._told = error.message
            hint = f" ({error.hint})" if error.hint else ""
            log.warning("not registered at %s: %s%s", self._platform.url, error.message, hint)
