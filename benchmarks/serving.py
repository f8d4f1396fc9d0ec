"""Tokens a second through our API against the engine alone, and against Transformers' ``generate``.

    .venv/bin/python benchmarks/serving.py --gguf MODEL.gguf [--hf FOLDER] [--streams 1 8] [--rounds 5]

One process each, started before any is measured. Rounds alternate, so that what else the machine does hits all alike; a
ratio is the median of the rounds' ratios. "engine" asks the very same replica process on its own socket, with the very
body that our API sends it; "api" goes through gateway, integrator and component over TCP. Both clients stream.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from burnish.components.model_serving.engines import ENGINES
from burnish.core.inference import upstream_body
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from tests.support import databases
from tests.support.serving import fake_server

PROMPT = "Write a long story about a lighthouse keeper who finds a map."


def body(tokens: int, seed: int) -> dict[str, Any]:
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": f"{PROMPT} ({seed})"}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"0": -100, "2": -100},
    }


async def stream(session: aiohttp.ClientSession, url: str, payload: dict[str, Any]) -> int:
    """Read one stream to its end; return its tokens."""
    tail = b""
    async with session.post(f"{url}/v1/chat/completions", json=payload) as response:
        assert response.status == 200, await response.text()
        async for chunk in response.content.iter_any():
            tail = (tail + chunk)[-4000:]
    last = [line for line in tail.split(b"\n\n") if b'"usage"' in line][-1]
    return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])


async def rate(session: aiohttp.ClientSession, url: str, payloads: list[dict[str, Any]]) -> float:
    """Return the tokens a second of streams side by side."""
    began = time.monotonic()
    tokens = sum(await asyncio.gather(*(stream(session, url, payload) for payload in payloads)))
    return tokens / (time.monotonic() - began)


TRANSFORMERS = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    chats = [[{"role": "user", "content": prompt}] for prompt in job["prompts"]]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    began = time.monotonic()
    with torch.inference_mode():
        out = model.generate(**inputs, min_new_tokens=job["tokens"], max_new_tokens=job["tokens"], do_sample=False)
    made = (out.shape[1] - inputs["input_ids"].shape[1]) * len(chats)
    print(made / (time.monotonic() - began), flush=True)
"""


class Transformers:
    """``generate`` in bfloat16, in a process of its own."""

    def __init__(self, folder: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRANSFORMERS, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    async def rate(self, streams: int, tokens: int, seed: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        prompts = [f"{PROMPT} ({seed + i})" for i in range(streams)]
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return float(await asyncio.to_thread(self.process.stdout.readline))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


async def deployed(http: aiohttp.ClientSession, url: str, ref: dict[str, Any]) -> Path:
    """Deploy the model, wait until it serves, return its replica's socket."""
    spec = {"deployment": "bench", "model": ref, "parallel": 8, "context_length": 1024}
    async with http.post(f"{url}/platform/deployments", json=spec) as response:
        assert response.status == 200, await response.text()
    while True:
        async with http.get(f"{url}/platform/deployments/bench") as response:
            view = await response.json()
        if view["state"] == "ready":
            return Path(view["replicas"][0]["id"])
        assert not view["error"], view["error"]
        await asyncio.sleep(0.05)


async def measure(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    database_file = home / "bench.db"
    await asyncio.to_thread(databases.sqlite_template, database_file)
    database, store = Database(f"sqlite+aiosqlite:///{database_file}"), FileArtifactStore(home / "artifacts")
    staged = store.stage("bench")
    (staged / "model.gguf").write_bytes(options.gguf.read_bytes())
    ref = store.publish(staged, "gguf")
    async with database.write() as session:
        await artifacts.record(session, "default", ref)
    peer = Transformers(options.hf, os.cpu_count() or 1) if options.hf else None
    results: dict[str, Any] = {}
    try:
        async with fake_server(database, store, home, dict(ENGINES)) as server, aiohttp.ClientSession() as http:
            replica = await deployed(http, server.url, ref.model_dump())
            config = json.loads((home / "run" / "replicas" / replica / "config.json").read_text())
            connector = aiohttp.UnixConnector(path=config["socket"], limit=0, keepalive_timeout=1)
            async with aiohttp.ClientSession(connector=connector) as direct:
                for streams in options.streams:
                    results[str(streams)] = await compare(options, streams, server.url, http, direct, peer)
    finally:
        await database.dispose()
        if peer is not None:
            peer.close()
    return results


async def compare(
    options: argparse.Namespace, streams: int, url: str, http: aiohttp.ClientSession, direct: aiohttp.ClientSession,
    peer: Transformers | None,
) -> dict[str, Any]:  # fmt: skip
    async def api(seed: int) -> float:
        return await rate(http, url, [body(options.tokens, seed + i) for i in range(streams)])

    async def engine(seed: int) -> float:
        asked = [upstream_body(body(options.tokens, seed + i)) for i in range(streams)]
        return await rate(direct, "http://engine", asked)

    async def transformers(seed: int) -> float:
        assert peer is not None
        return await peer.rate(streams, options.tokens, seed)

    ways: dict[str, Callable[[int], Awaitable[float]]] = {"engine": engine, "api": api}
    if peer is not None:
        ways["transformers"] = transformers
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        order = list(ways) if number % 2 else list(reversed(ways))
        for name in order:
            found = await ways[name](1000 * number)
            if number:  # the first round warms up
                seen[name].append(found)
    report: dict[str, Any] = {name: round(statistics.median(rates), 1) for name, rates in seen.items()}
    report["api/engine"] = _ratio(seen["api"], seen["engine"])
    if peer is not None:
        report["api/transformers"] = _ratio(seen["api"], seen["transformers"])
    return report


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--hf", type=Path, help="the same model as safetensors, to compare with Transformers")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        print(json.dumps(asyncio.run(measure(options, Path(home))), indent=1))


if __name__ == "__main__":
    main()
