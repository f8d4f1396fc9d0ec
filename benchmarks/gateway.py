"""What our gateway costs on top of what it stands before: against nginx, and against LiteLLM's proxy.

    PYTHONPATH=. python benchmarks/gateway.py [--litellm VENV/bin/litellm] [--rounds 5] [--seconds 4] [--redis]

One run: nginx answers chat completions from memory (the upstream of all three); before it stand, each in a process of
its own, our gateway (authentication, limits, admission and access log on; `burnish serve --components platform` on
PostgreSQL), another nginx with `proxy_pass` and its access log, and LiteLLM's proxy with a key. wrk asks them in turn,
round by round; the cost is processor time of the process by requests answered (less what the process
spends without any), so that what else the machine does counts little. Streams come from an upstream that writes the
time into each event. Needs nginx, wrk and PostgreSQL.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.postgres import free_port, running_server
from tests.support.redis import running_redis
from tests.support.server import Server

BODY = json.dumps(
    {"model": "bench", "messages": [{"role": "user", "content": "What is a lighthouse?"}], "max_tokens": 16}
)
COMPLETION = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "A tower with a light."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
})  # fmt: skip
DESCRIPTION = json.dumps(
    {"component_type": "model_serving", "version": "1", "protocol_version": "1", "kinds": [], "routes": []}
)
STREAMER = '{"component_type": "bench_stream", "version": "1", "protocol_version": "1", "kinds": [], "routes": ["/platform/bench"]}'
NGINX = """
daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections 4096; }}
http {{
  access_log {log}; client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 100000000;
  {more}
}}
"""
UPSTREAM = """
  server {{ listen 127.0.0.1:{port} backlog=2048; default_type application/json;
    location = /health {{ return 200 '{{"status": "ok"}}'; }}
    location = /describe {{ return 200 '{description}'; }}
    location / {{ return 200 '{completion}'; }} }}
"""
PROXY = """
  upstream behind {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=2048;
    location / {{ proxy_pass http://{target}; {keep} }} }}
"""
STREAMING = """
import asyncio, json, sys, time, uvicorn
running = 0
async def app(scope, receive, send):
    global running
    path = scope["path"]
    if path.endswith("/endless"):
        running += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
            left = asyncio.create_task(gone(receive))
            while not left.done():
                await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % time.monotonic_ns(), "more_body": True})
                await asyncio.wait({left}, timeout=0.2)
        finally:
            running -= 1
        return
    body = {"/health": b'{"status": "ok"}', "/describe": sys.argv[2].encode()}.get(path, str(running).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
async def gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", loop="uvloop", http="httptools", access_log=False, lifespan="off", backlog=4096)
"""


class Target:
    """A process that answers, and what it costs."""

    def __init__(self, name: str, url: str, pid: int, key: str) -> None:
        self.name, self.url, self.pid, self.key = name, url, pid, key
        self.idle = 0.0
        """Processor seconds a second without requests: reconcilers, heartbeats, following the configuration."""
        self.costs: list[float] = []
        self.rates: list[float] = []

    def cpu(self) -> float:
        """Processor seconds of the process and its children."""
        process = psutil.Process(self.pid)
        spent = 0.0
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                spent += times.user + times.system
        return spent

    def measure(self, seconds: int, connections: int, folder: Path) -> None:
        """Ask it for a while; note the processor time of a request and how many it answered a second."""
        script = folder / "ask.lua"
        script.write_text(
            f"wrk.method='POST'\nwrk.body='{BODY}'\nwrk.headers['Content-Type']='application/json'\n"
            f"wrk.headers['Authorization']='Bearer {self.key}'\n"
        )
        before, began = self.cpu(), time.monotonic()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-s",
            str(script),
            f"{self.url}/v1/chat/completions",
        ]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        spent = self.cpu() - before - self.idle * (time.monotonic() - began)
        found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", text)
        assert found is not None, text
        assert "Non-2xx" not in text, text
        self.costs.append(spent / max(1, int(found[1])))
        self.rates.append(int(found[1]) / float(found[2]))


@contextlib.contextmanager
def started(command: list[str], ready: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process and wait until ``ready`` answers."""
    process = subprocess.Popen(command, start_new_session=True, **more)
    try:
        deadline = time.monotonic() + 90
        while subprocess.run(["curl", "-s", "-o", "/dev/null", ready], check=False).returncode != 0:
            assert process.poll() is None, command
            assert time.monotonic() < deadline, command
            time.sleep(0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def nginx(stack: contextlib.ExitStack, folder: Path, name: str, more: str, port: int, log: str) -> int:
    """Run an nginx; return its pid."""
    (folder / f"{name}.conf").write_text(NGINX.format(folder=folder, name=name, more=more, log=log))
    command = ["nginx", "-p", str(folder), "-c", str(folder / f"{name}.conf")]
    return stack.enter_context(started(command, f"http://127.0.0.1:{port}/health", stderr=subprocess.DEVNULL)).pid


def our_gateway(stack: contextlib.ExitStack, folder: Path, upstream: int, streams: int, redis: bool) -> Target:
    """Run our gateway, with both upstreams registered."""
    postgres = stack.enter_context(running_server())
    database = postgres.create_database()
    (folder / "burnish.yaml").write_text(
        "gateway:\n  per_key: {requests_per_second: 1000000, burst: 1000000}\n"
        "  per_project: {requests_per_second: 1000000, burst: 1000000}\n  max_in_flight: 20000\n"
    )
    environment = {
        "BURNISH_COMPONENTS": "platform", "BURNISH_AUTH": "on", "BURNISH_LOG_FORMAT": "json",
        "BURNISH_CONFIG": str(folder / "burnish.yaml"),
    }  # fmt: skip
    if redis:
        environment["BURNISH_REDIS_URL"] = stack.enter_context(running_redis()).url
    server = Server(folder / "home", database_url=postgres.url(database), environment=environment)
    stack.callback(server.end_everything)
    server.start()
    found = re.search(r"shown once:\s+(\S+)", server.log.read_text())
    assert found is not None, server.tail()
    key = found[1]
    headers = {"Authorization": f"Bearer {key}"}
    for component_type, port in (("model_serving", upstream), ("bench_stream", streams)):
        base = f"http://127.0.0.1:{port}"
        body = {
            "component_id": f"{component_type}-1", "component_type": component_type, "name": component_type, "version": "1",
            "health_endpoint": f"{base}/health", "api_endpoint": base,
        }  # fmt: skip
        server.request("POST", "/platform/components/register", body, headers=headers)
    deadline = time.monotonic() + 20
    while {one["status"] for one in server.request("GET", "/platform/components", headers=headers)["data"]} != {
        "healthy"
    }:
        assert time.monotonic() < deadline, server.request("GET", "/platform/components", headers=headers)
        time.sleep(0.1)
    return Target("burnish + redis" if redis else "burnish", server.url, server.pid, key)


def litellm(stack: contextlib.ExitStack, folder: Path, program: Path, upstream: int) -> Target:
    """Run LiteLLM's proxy with a master key."""
    port = free_port()
    (folder / "litellm.yaml").write_text(
        f"model_list:\n- model_name: bench\n  litellm_params: {{model: openai/bench, api_base: http://127.0.0.1:{upstream}/v1, api_key: none}}\n"
        "general_settings: {master_key: sk-bench}\nlitellm_settings: {telemetry: false}\n"
    )
    environment = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    command = [str(program), "--config", str(folder / "litellm.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    with (folder / "litellm.log").open("wb") as log:
        process = stack.enter_context(
            started(command, f"http://127.0.0.1:{port}/health/liveliness", stdout=log, stderr=log, env=environment)
        )
    return Target("litellm", f"http://127.0.0.1:{port}", process.pid, "sk-bench")


async def latencies(url: str, key: str, rate: float, seconds: float) -> list[float]:
    """Ask at a steady rate, whatever the answers do; return how long each took from when it was due."""
    took: list[float] = []
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(due: float) -> None:
            async with session.post(f"{url}/v1/chat/completions", data=BODY) as response:
                await response.read()
                assert response.status == 200
            took.append(time.monotonic() - due)

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due = began + number / rate
                if (pause := due - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                group.create_task(ask(due))
    return sorted(took)


async def chunk_delays(url: str, key: str, streams: int, seconds: float) -> list[float]:
    """Open many streams; return for each event how long it was on its way."""
    delays: list[float] = []
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def follow(until: float) -> None:
            async with session.get(url) as response:
                assert response.status == 200, await response.text()
                async for chunk in response.content.iter_any():
                    now = time.monotonic_ns()
                    if time.monotonic() > until:
                        return
                    if time.monotonic() > until - seconds:
                        delays.extend((now - int(line[6:])) / 1e6 for line in chunk.split(b"\n\n") if line)

        until = time.monotonic() + seconds + 2
        await asyncio.gather(*(follow(until + number / streams * 0.1) for number in range(streams)))
    return sorted(delays)


async def hang_ups(target: Target, streams: str, count: int) -> int:
    """Open and abandon streams; return how many the upstream still serves after a while."""
    side_by_side = asyncio.Semaphore(100)
    host, port = target.url.removeprefix("http://").split(":")

    async def hang_up() -> None:
        async with side_by_side:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                f"GET /platform/bench/endless HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {target.key}\r\n\r\n".encode()
            )
            await reader.readuntil(b"data: ")
            writer.transport.abort()

    await asyncio.gather(*(hang_up() for _ in range(count)))
    deadline = time.monotonic() + 10
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{streams}/running") as response:
                left = int(await response.text())
            if left == 0 or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)


async def idle_memory(target: Target, count: int) -> tuple[float, float]:
    """Return MB of the process before and with so many connections that have been answered once."""
    host, port = target.url.removeprefix("http://").split(":")
    process = psutil.Process(target.pid)
    before = process.memory_info().rss / 1e6
    writers = []
    for _ in range(0, count, 200):
        pairs = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(200)))
        for _, writer in pairs:
            writer.write(b"GET /platform/health HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.gather(*(reader.readuntil(b"}") for reader, _ in pairs))
        writers += [writer for _, writer in pairs]
    with_them = process.memory_info().rss / 1e6
    for writer in writers:
        writer.transport.abort()
    return before, with_them


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def rounds(targets: list[Target], options: argparse.Namespace, folder: Path) -> None:
    """Ask all in turn; print each one's cost and the ratios."""
    for target in targets:
        target.measure(2 if target.name != "litellm" else 15, options.connections, folder)
        target.costs, target.rates = [], []
    before = [target.cpu() for target in targets]
    time.sleep(5)
    for target, spent in zip(targets, before, strict=True):
        target.idle = (target.cpu() - spent) / 5
    for _ in range(options.rounds):
        for target in targets:
            target.measure(options.seconds, options.connections, folder)
    print(f"{'':28} {'CPU us/request':>16} {'spread':>16} {'requests/s':>12} {'idle CPU':>9}")
    for target in targets:
        costs = sorted(cost * 1e6 for cost in target.costs)
        print(
            f"{target.name:28} {statistics.median(costs):16.0f} {costs[0]:7.0f}-{costs[-1]:<8.0f}"
            f" {statistics.median(target.rates):12.0f} {target.idle:9.1%}"
        )
    ours = [target for target in targets if target.name.startswith("burnish")]
    for own in ours:
        for peer in targets:
            if peer not in ours:
                ratio = statistics.median(a / b for a, b in zip(own.costs, peer.costs, strict=True))
                print(f"{own.name} / {peer.name}: {ratio:.3f}x" + (f" = 1/{1 / ratio:.1f}" if ratio < 1 else ""))


def latency(own: Target, direct: Target, options: argparse.Namespace) -> None:
    """Print what the gateway adds at half of what it can do."""
    half = statistics.median(own.rates) / 2
    found: dict[str, list[float]] = {own.name: [], direct.name: []}
    for _ in range(options.rounds):
        for target in (direct, own):
            found[target.name] += asyncio.run(latencies(target.url, target.key, half, options.seconds))
    there, through = sorted(found[direct.name]), sorted(found[own.name])
    for share in (0.5, 0.99):
        a, b = percentile(there, share) * 1e3, percentile(through, share) * 1e3
        print(
            f"latency at {half:.0f} requests/s, p{share * 100:.0f}: direct {a:.2f} ms, through {b:.2f} ms, added {b - a:.2f} ms"
        )


def streams(own: Target, behind: str, options: argparse.Namespace) -> None:
    """Print what the gateway adds to the chunks of streams, and what it leaves behind."""
    direct: list[float] = []
    through: list[float] = []
    for _ in range(2):
        direct += asyncio.run(chunk_delays(f"{behind}/endless", own.key, options.streams, options.seconds))
        through += asyncio.run(
            chunk_delays(f"{own.url}/platform/bench/endless", own.key, options.streams, options.seconds)
        )
    direct, through = sorted(direct), sorted(through)
    for share in (0.5, 0.99):
        a, b = percentile(direct, share), percentile(through, share)
        print(
            f"{options.streams} streams, delay of a chunk p{share * 100:.0f}: direct {a:.2f} ms, through {b:.2f} ms, added {b - a:.2f} ms"
        )
    print(f"upstream streams left after 1,000 hang-ups: {asyncio.run(hang_ups(own, behind, 1000))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="the program in a virtual environment of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--redis", action="store_true", help="also measure with buckets in Redis")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that what was started ends, too
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = Path(tempfile.mkdtemp(prefix="burnish-bench-", dir="/tmp"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        upstream, streaming = free_port(), free_port()
        served = UPSTREAM.format(port=upstream, description=DESCRIPTION, completion=COMPLETION)
        direct = Target(
            "direct", f"http://127.0.0.1:{upstream}", nginx(stack, folder, "upstream", served, upstream, "off"), "none"
        )
        command = [sys.executable, "-c", STREAMING, str(streaming), STREAMER]
        stack.enter_context(started(command, f"http://127.0.0.1:{streaming}/health"))
        own = our_gateway(stack, folder, upstream, streaming, redis=False)
        plain, kept = free_port(), free_port()
        bare = PROXY.format(upstream=upstream, port=plain, target=f"127.0.0.1:{upstream}", keep="")
        keep = PROXY.format(
            upstream=upstream,
            port=kept,
            target="behind",
            keep='proxy_http_version 1.1; proxy_set_header Connection "";',
        )
        log = str(folder / "access.log")
        targets = [
            own,
            Target("nginx proxy_pass", f"http://127.0.0.1:{plain}", nginx(stack, folder, "plain", bare, plain, log), "none"),
            Target("nginx proxy_pass, keepalive", f"http://127.0.0.1:{kept}", nginx(stack, folder, "kept", keep, kept, log), "none"),
        ]  # fmt: skip
        if options.redis:
            second = folder / "redis"
            second.mkdir()
            targets.insert(1, our_gateway(stack, second, upstream, streaming, redis=True))
        if options.litellm is not None:
            targets.append(litellm(stack, folder, options.litellm, upstream))
        rounds(targets, options, folder)
        latency(own, direct, options)
        streams(own, f"http://127.0.0.1:{streaming}", options)
        before, idle = asyncio.run(idle_memory(own, 10_000))
        print(
            f"memory: {before:.0f} MB; with 10,000 idle connections {idle:.0f} MB ({(idle - before) / 10:.1f} KB each)"
        )


if __name__ == "__main__":
    main()
