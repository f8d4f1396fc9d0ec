"""Starting an engine for an evaluation, and talking to it as an ``openai`` client does."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.errors import BadModel, BurnishError, JobFailed
from burnish.core.inference import TEMPLATE_DEFAULTS, upstream_body
from burnish.core.prompting import ChatMessage
from burnish.core.specs.serving import EngineConfig, EngineName
from burnish.core.threads import thread_environment
from burnish.ml.child import tail
from burnish.ml.engines.process import MAX_SOCKET_PATH, WITH_PARENT

MODULES: Mapping[EngineName, str] = {
    "llama_cpp": "burnish.ml.engines.llama_cpp",
    "transformers": "burnish.ml.engines.transformers_engine",
}
_LOAD_SECONDS = 600.0
_REQUEST_SECONDS = 600.0


class EngineRefused(BurnishError):
    """The engine answered a request with an error status."""

    code = "upstream_failed"
    status = 502

    def __init__(self, message: str, *, upstream_status: int, kind: str = "") -> None:
        super().__init__(message)
        self.upstream_status = upstream_status
        self.kind = kind
        """OpenAI's or llama.cpp's error type, such as ``exceed_context_size_error``."""

    @property
    def prompt_too_long(self) -> bool:
        """Whether the prompt did not fit the context."""
        return self.kind in {"exceed_context_size_error", "context_length_exceeded"}


class EngineKilled(JobFailed):
    """Somebody killed the engine's process (KILL): no fault of the model's, so it is worth another try."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class RunningEngine:
    """An engine that has generated its first token."""

    config: EngineConfig
    process: subprocess.Popen[bytes]
    log: Path
    load_seconds: float
    _folder: tempfile.TemporaryDirectory[str] | None
    """Of the socket, where the log's folder has too long a path for one."""

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self.process.pid

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send JSON and return the answer's JSON. A connection of its own: idle ones are closed by the engine.

        Raises:
            EngineRefused: an answer that is not 200.
            JobFailed: the engine ended or did not answer.
        """
        with self._request("POST", path, body) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a chat completion in OpenAI's form, as the gateway would pass it on."""
        return self.post("/v1/chat/completions", upstream_body({"model": self.config.served_name, **request}))

    def stream_chat(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask for a streamed chat completion and give its chunks as they come."""
        body = upstream_body({"model": self.config.served_name, **request, "stream": True})
        with self._request("POST", "/v1/chat/completions", body) as response:
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if line.startswith(b"data: ") and data != b"[DONE]":
                    yield json.loads(data)

    def apply_template(self, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        """Return ``prompt``, what the chat template makes of messages in :meth:`chat`, and perhaps ``add_special``."""
        return self.post(
            "/apply-template", {"messages": list(messages), "chat_template_kwargs": dict(TEMPLATE_DEFAULTS)}
        )

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text without special tokens."""
        tokens: list[int] = self.post("/tokenize", {"content": text, "add_special": False})["tokens"]
        return tokens

    def memory_bytes(self) -> int:
        """Return the process's proportional set size."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self) -> None:
        """End the process and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        Path(self.config.socket).unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> "RunningEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.config.socket, _REQUEST_SECONDS)
        try:
            try:
                payload = None if body is None else json.dumps(body)
                connection.request(method, path, payload, {"content-type": "application/json"})
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise JobFailed(
                    f"the engine does not answer ({error}): {tail(self.log)}", where=self.config.model_dir
                ) from error
            if response.status != 200:
                raise _refused(response)
            yield response
        finally:
            connection.close()


def _refused(response: http.client.HTTPResponse) -> EngineRefused:
    text = response.read().decode("utf-8", errors="replace")
    try:
        told = json.loads(text)["error"]
        kind = str(told.get("type") or "") if told.get("code") in (None, response.status) else str(told["code"])
        return EngineRefused(str(told["message"]), upstream_status=response.status, kind=kind)
    except (ValueError, KeyError, TypeError, AttributeError):
        return EngineRefused(text[:500], upstream_status=response.status)


def start(
    config: EngineConfig, log: Path, *, load_seconds: float = _LOAD_SECONDS, waiting: Callable[[float], None] | None = None
) -> RunningEngine:  # fmt: skip
    """Start an engine as a child of this process, in its process group, and wait until it has generated a token.

    The child dies when this process dies. ``config.socket`` may be empty: then a short path is made for it.

    Args:
        config: What to start.
        log: File for the engine's output.
        load_seconds: How long it may take.
        waiting: Called with the seconds so far, many times a second, while it loads; what it raises ends the engine.

    Raises:
        BadModel: the engine ended while loading; the message is its own reason.
        JobFailed: it was not ready in ``load_seconds``.
    """
    began = time.monotonic()
    folder = None
    path = config.socket or str(log.with_suffix(".sock").resolve())
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        folder = tempfile.TemporaryDirectory(prefix="burnish-")
        path = f"{folder.name}/engine.sock"
    config = config.model_copy(update={"socket": path})
    config_file = log.with_suffix(".json")
    config_file.write_text(config.model_dump_json(), encoding="utf-8")
    environment = {
        **os.environ, **thread_environment(config.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULES[config.engine], str(config_file), WITH_PARENT],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    engine = RunningEngine(config, process, log, 0.0, folder)
    try:
        _wait_until_ready(engine, began, load_seconds, waiting or (lambda _seconds: None))
    except BaseException:
        engine.stop()
        raise
    engine.load_seconds = time.monotonic() - began
    return engine


def killed(engine: RunningEngine) -> EngineKilled:
    """Return the error for an engine whose process was killed."""
    return EngineKilled(
        f"the engine's process (pid {engine.pid}) was killed", where=engine.config.model_dir,
        hint="if the machine ran out of memory, free some or raise the job's resources",
    )  # fmt: skip


def was_killed(engine: RunningEngine) -> bool:
    """Tell whether the engine's process has been killed; waits a moment for one that is just ending."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return engine.process.wait(1) == -signal.SIGKILL
    return False


def _wait_until_ready(
    engine: RunningEngine, began: float, load_seconds: float, waiting: Callable[[float], None]
) -> None:
    probe = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0}
    while True:
        if (status := engine.process.poll()) is not None:
            if status == -signal.SIGKILL:
                raise killed(engine)
            reason = tail(engine.log, 1).removeprefix("cannot serve: ") or "no reason was given"
            raise BadModel(
                f"the engine {engine.config.engine} ended with {status}: {reason}", where=engine.config.model_dir
            )
        if Path(engine.config.socket).exists():
            try:
                engine.chat(probe)
                return
            except EngineRefused as error:
                if error.upstream_status != 503:
                    raise BadModel(f"the model cannot generate: {error}", where=engine.config.model_dir) from error
            except JobFailed:
                pass  # not listening yet, or just ended: the next turn tells
        waiting(time.monotonic() - began)
        if time.monotonic() - began > load_seconds:
            raise JobFailed(f"the engine was not ready in time: {tail(engine.log)}", where=engine.config.model_dir)
        time.sleep(0.03)
