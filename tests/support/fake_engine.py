"""An engine without a model: a real process that answers OpenAI's streams on a unix socket, as slowly as it is told.

The model's folder holds ``fake.json``: ``name`` (what it says), ``start_seconds``, ``token_seconds``, ``tokens`` (when
``max_tokens`` is not given), ``fail`` (a message with which it dies at start), ``serves`` (a wrong name to serve under).
``GET /stats`` tells how many generations ran, run and were cancelled.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web


class FakeEngine:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.fake: dict[str, Any] = json.loads((Path(config["model_dir"]) / "fake.json").read_text())
        self.slots = asyncio.Semaphore(config["parallel"])
        self.running = self.cancelled = self.completed = 0
        self.bodies: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/slots", self.slot_list)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def slot_list(self, _: web.Request) -> web.Response:
        return web.json_response([{"id": i, "is_processing": True} for i in range(self.running)])

    async def stats(self, _: web.Request) -> web.Response:
        counts = {"running": self.running, "cancelled": self.cancelled, "completed": self.completed}
        return web.json_response({**counts, "bodies": self.bodies})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self.generate(request, chat=True)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self.generate(request, chat=False)

    async def generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        text = body["prompt"] if not chat else " ".join(message["content"] for message in body["messages"])
        prompt_tokens = len(text.split())
        if prompt_tokens > self.config["context_length"]:
            error = {"code": 400, "message": "the request exceeds the context", "type": "exceed_context_size_error"}
            return web.json_response({"error": error}, status=400)
        count = body.get("max_tokens") or self.fake.get("tokens", 16)
        words = [f"{self.fake['name']}", *(f" w{i}" for i in range(1, count))]
        self.running += 1
        try:
            async with self.slots:
                if body.get("stream"):
                    return await self.stream(request, body, words, prompt_tokens, chat)
                await asyncio.sleep(self.fake.get("token_seconds", 0) * len(words))
                self.completed += 1
                choice = {"index": 0, "text": "".join(words), "finish_reason": "length", "logprobs": None}
                usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words)}
                return web.json_response({"id": "x", "model": self.served, "choices": [choice], "usage": usage})
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    @property
    def served(self) -> str:
        return str(self.fake.get("serves", self.config["served_name"]))

    async def stream(
        self, request: web.Request, body: dict[str, Any], words: list[str], prompt_tokens: int, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def event(choices: list[dict[str, Any]], **more: Any) -> None:
            kind = "chat.completion.chunk" if chat else "text_completion"
            data = {"id": "chatcmpl-x", "object": kind, "created": int(time.time()), "model": self.served}
            await response.write(b"data: " + json.dumps({**data, "choices": choices, **more}).encode() + b"\n\n")

        for index in range(body.get("n") or 1):
            for word in words:
                part: dict[str, Any] = {"index": index, "finish_reason": None}
                part.update({"delta": {"content": word}} if chat else {"text": word})
                if told := alternatives(body, chat):
                    token = {"token": word, "bytes": list(word.encode()), "logprob": -0.5, "id": 7}
                    others = [{**token, "token": f"other{i}", "logprob": -1.0 - i} for i in range(1, told)]
                    part["logprobs"] = {"content": [{**token, "top_logprobs": [token, *others]}]}
                await event([part])
                await asyncio.sleep(self.fake.get("token_seconds", 0))
            await event([{"index": index, "finish_reason": "length", **({"delta": {}} if chat else {"text": ""})}])
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words) * (body.get("n") or 1)}
            await event([], usage=usage, timings={"predicted_ms": 1.0})
        await response.write(b"data: [DONE]\n\n")
        self.completed += 1
        return response


def alternatives(body: dict[str, Any], chat: bool) -> int:
    """Return for how many tokens probabilities are told at each place, as llama.cpp has it: 0 is no logprobs at all."""
    if not chat:
        return int(body.get("logprobs") or 0)
    return int(body.get("top_logprobs", 20)) if body.get("logprobs") else 0


async def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    engine = FakeEngine(config)
    if "fail" in engine.fake:
        raise SystemExit(engine.fake["fail"])
    await asyncio.sleep(engine.fake.get("start_seconds", 0))
    runner = web.AppRunner(engine.app(), handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, config["socket"]).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
