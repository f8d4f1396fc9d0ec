"""What is measured of one generation request."""

import time

from burnish.infra import signals
from burnish.infra.asgi import Message, Send


class Measured:
    """Stands between the data path and the client: counts a request, times its first byte and its end."""

    def __init__(self, deployment: str, send: Send) -> None:
        self._deployment = deployment
        self._send = send
        self._status = 0
        self._ended = False
        self._first: float | None = None
        self._began = time.monotonic()

    def __enter__(self) -> "Measured":
        signals.GENERATIONS_IN_PROGRESS.labels(self._deployment).inc()
        return self

    def __exit__(self, *_: object) -> None:
        signals.GENERATIONS_IN_PROGRESS.labels(self._deployment).dec()
        signals.GENERATIONS.labels(self._deployment, self._outcome()).inc()
        if self._status == 200 and self._ended:
            signals.GENERATION_SECONDS.labels(self._deployment).observe(time.monotonic() - self._began)

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            self._first = time.monotonic()
            if self._status == 200:
                signals.FIRST_TOKEN_SECONDS.labels(self._deployment).observe(self._first - self._began)
        else:
            self._ended = self._ended or not message.get("more_body", False)
        await self._send(message)

    def refused(self, status: int) -> None:
        """Note the error with which the request will be answered."""
        self._status, self._ended = status, True

    def wrote(self, tokens: int) -> None:
        """Count tokens that the model wrote."""
        signals.TOKENS.labels(self._deployment, "written").inc(tokens)

    def read(self, tokens: int) -> None:
        """Count tokens of prompts."""
        signals.TOKENS.labels(self._deployment, "read").inc(tokens)

    def _outcome(self) -> str:
        if not self._ended:
            return "hung_up"
        if self._status == 200:
            return "ok"
        return "busy" if self._status == 429 else "refused" if self._status < 500 else "failed"
