"""The engine ``transformers``: safetensors and PEFT adapters, on whatever Transformers runs on.

The reference engine: exact and plain. Requests are answered one after another, so that an answer depends on its request
alone; a client that hangs up stops its generation within a token.
"""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from burnish.core.errors import BadModel, BurnishError
from burnish.core.specs.serving import EngineConfig
from burnish.ml.engines import decoding
from burnish.ml.engines.answers import AnswerText
from burnish.ml.engines.process import positions, run_engine
from burnish.ml.engines.requests import Asked, RequestRejected, read_request
from burnish.ml.model import load_model, load_tokenizer, quiet, use_threads
from burnish.ml.text import render

_MAX_BODY = 32 << 20


@dataclass
class Loaded:
    """The model in memory."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    name: str
    positions: int

    def prompt_ids(self, body: Mapping[str, Any]) -> list[int]:
        """Return the prompt's tokens: the chat template's, or the plain prompt's."""
        if "messages" in body:
            text = self.rendered(body)
            special = self.tokenizer.chat_template is None
        else:
            text, special = str(body["prompt"]), True
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids or [next(iter(sorted(self.ends)))]

    def rendered(self, body: Mapping[str, Any]) -> str:
        """Return the text that the chat template makes of a body's messages."""
        options = body.get("chat_template_kwargs") or {}
        return render(
            self.tokenizer, body["messages"], answer=True, thinking=bool(options.get("enable_thinking", False))
        )


def serve(config: EngineConfig) -> None:
    """Serve until a signal ends the process.

    Raises:
        BadModel: model or adapter cannot be loaded.
    """
    use_threads(config.threads)
    asyncio.run(_serve(load(config), config.socket))


def load(config: EngineConfig) -> Loaded:
    """Load model, adapter and tokenizer.

    Raises:
        BadModel: one of them is missing, damaged, or does not go with the others.
    """
    folder = Path(config.model_dir)
    model: Any = load_model(folder, "auto")
    if config.adapter_dir is not None:
        from peft import PeftModel

        try:
            with quiet():
                model = PeftModel.from_pretrained(model, config.adapter_dir)
        except Exception as error:
            raise BadModel(f"the adapter cannot be loaded: {error}", where=config.adapter_dir) from error
        model.eval()
    tokenizer = load_tokenizer(folder)
    told = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *([told] if isinstance(told, int) else told or ())}
    return Loaded(model, tokenizer, frozenset(ends), config.served_name, positions(config))


async def _serve(loaded: Loaded, socket: str) -> None:
    engine = _Engine(loaded)
    app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
    app.add_routes([
        web.get("/health", engine.health),
        web.get("/v1/models", engine.models),
        web.post("/v1/chat/completions", engine.chat),
        web.post("/v1/completions", engine.completion),
        web.post("/tokenize", engine.tokenize),
        web.post("/detokenize", engine.detokenize),
        web.post("/apply-template", engine.apply_template),
        web.post("/score", engine.score),
    ])  # fmt: skip
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await asyncio.Event().wait()


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except RequestRejected as error:
        status, message, kind = error.status, error.message, error.kind
    except BurnishError as error:
        status, message, kind = 400, error.message, "invalid_request_error"
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        status, message, kind = 400, f"the request cannot be read: {error!r}", "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.json_response(body, status=status)


@dataclass(frozen=True)
class _Piece:
    """What one step adds to one choice."""

    choice: int
    text: str = ""
    logprobs: tuple[dict[str, Any], ...] = ()
    finish: str | None = None


@dataclass
class _Run:
    """One request being answered: its pieces come from the decoding thread."""

    asked: Asked
    prompt: list[int]
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for the answer any more."""
    generated: int = 0


class _Engine:
    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding")

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._loaded.name, "object": "model"}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        special = bool(body.get("add_special", False))
        ids = self._loaded.tokenizer(str(body["content"]), add_special_tokens=special)["input_ids"]
        return web.json_response({"tokens": ids})

    async def detokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"content": self._loaded.tokenizer.decode(list(body["tokens"]))})

    async def apply_template(self, request: web.Request) -> web.Response:
        body = await request.json()
        special = self._loaded.tokenizer.chat_template is None
        return web.json_response({"prompt": self._loaded.rendered(body), "add_special": special})

    async def score(self, request: web.Request) -> web.Response:
        """Teacher forcing: the log-probability of ``tokens`` after ``messages`` (or after ``prompt_tokens``)."""
        body = await request.json()
        prompt = list(body.get("prompt_tokens") or ()) or self._loaded.prompt_ids(body)
        self._check_length(prompt, len(body["tokens"]))
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, decoding.score, self._loaded.model, prompt, list(body["tokens"])
        )
        return web.json_response({"logprob": sum(found), "token_logprobs": found})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.json()
        prompt = self._loaded.prompt_ids(body) if ("messages" in body) == chat else []
        if not prompt:
            raise RequestRejected(f"Missing required parameter: '{'messages' if chat else 'prompt'}'.")
        self._check_length(prompt, 1)
        asked = read_request(body, self._loaded.positions - len(prompt), self._loaded.tokenizer)
        run = _Run(asked, prompt)
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()),
            "model": self._loaded.name,
        }  # fmt: skip
        try:
            if asked.stream:
                return await self._stream(request, run, head, chat=chat)
            return await self._whole(run, head, chat=chat)
        finally:
            run.gone.set()

    def _check_length(self, prompt: list[int], answer: int) -> None:
        if len(prompt) + answer > self._loaded.positions:
            raise RequestRejected(
                f"the prompt has {len(prompt)} tokens, the context {self._loaded.positions}",
                kind="exceed_context_size_error",
            )

    async def _whole(self, run: _Run, head: Mapping[str, Any], *, chat: bool) -> web.Response:
        texts = [""] * run.asked.sampling.choices
        logprobs: list[list[dict[str, Any]]] = [[] for _ in texts]
        finishes = ["length"] * len(texts)
        async for piece in self._pieces(run):
            texts[piece.choice] += piece.text
            logprobs[piece.choice] += piece.logprobs
            finishes[piece.choice] = piece.finish or finishes[piece.choice]
        told = run.asked.sampling.top_logprobs is not None
        choices = [
            {
                "index": index, "finish_reason": finishes[index], "logprobs": {"content": logprobs[index]} if told else None,
                **({"message": {"role": "assistant", "content": text}} if chat else {"text": text}),
            }
            for index, text in enumerate(texts)
        ]  # fmt: skip
        kind = "chat.completion" if chat else "text_completion"
        return web.json_response({**head, "object": kind, "choices": choices, "usage": _usage(run)})

    async def _stream(
        self, request: web.Request, run: _Run, head: Mapping[str, Any], *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await response.prepare(request)
        kind = "chat.completion.chunk" if chat else "text_completion"

        async def send(choices: list[dict[str, Any]], **more: Any) -> None:
            chunk = {**head, "object": kind, "choices": choices, **more}
            await response.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")

        if chat:
            for index in range(run.asked.sampling.choices):
                await send([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        async for piece in self._pieces(run):
            choice: dict[str, Any] = {"index": piece.choice, "finish_reason": piece.finish}
            choice["logprobs"] = {"content": list(piece.logprobs)} if piece.logprobs else None
            if chat:
                choice["delta"] = {"content": piece.text} if piece.text or piece.logprobs else {}
            else:
                choice["text"] = piece.text
            await send([choice])
        if run.asked.include_usage:
            await send([], usage=_usage(run))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _pieces(self, run: _Run) -> AsyncIterator[_Piece]:
        """Give the pieces as the decoding thread makes them; leaving stops it."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[_Piece | BaseException | None] = asyncio.Queue()

        def put(item: _Piece | BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        self._thread.submit(_decode_into, self._loaded, run, put)
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def _decode_into(loaded: Loaded, run: _Run, put: Any) -> None:
    """Decode in the decoding thread, putting pieces, then None (or the exception that ended it)."""
    try:
        for piece in _decode(loaded, run):
            put(piece)
    except Exception as error:
        put(error)
    else:
        put(None)


def _decode(loaded: Loaded, run: _Run) -> Any:
    sampling = run.asked.sampling
    answers = [AnswerText(loaded.tokenizer, run.asked.stops) for _ in range(sampling.choices)]
    done: set[int] = set()
    if run.gone.is_set():
        return
    steps = decoding.decode(
        loaded.model, run.prompt, sampling, loaded.ends, lambda choice: run.gone.is_set() or answers[choice].stopped
    )
    for step in steps:
        run.generated += 1
        answer = answers[step.choice]
        if step.ended:
            done.add(step.choice)
            yield _Piece(step.choice, answer.rest(), finish="stop")
            continue
        text = answer.add(step.token)
        logprobs = (_told(loaded.tokenizer, step),) if step.logprob is not None else ()
        if text or logprobs:
            yield _Piece(step.choice, text, logprobs)
        if answer.stopped:
            done.add(step.choice)
            yield _Piece(step.choice, finish="stop")
    for choice in sorted(set(range(sampling.choices)) - done):
        yield _Piece(choice, answers[choice].rest(), finish="length")


def _told(tokenizer: Any, step: decoding.Step) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"id": token, "token": text, "bytes": list(text.encode()), "logprob": logprob}

    assert step.logprob is not None
    return {**entry(step.token, step.logprob), "top_logprobs": [entry(one.id, one.logprob) for one in step.top]}


def _usage(run: _Run) -> dict[str, int]:
    prompt = len(run.prompt)
    return {"prompt_tokens": prompt, "completion_tokens": run.generated, "total_tokens": prompt + run.generated}


if __name__ == "__main__":
    run_engine(serve)
