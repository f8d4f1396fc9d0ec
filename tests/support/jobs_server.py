"""A server's job side in a process of its own, to be killed: ``python -m tests.support.jobs_server URL HOME``."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from burnish.platform.jobs.files import JobOrder
from tests.support.jobs_bench import Bench

CRASH = "BURNISH_TEST_CRASH"
"""In the environment: ``before_start`` or ``after_start`` kills the server when it starts its first host."""


def _arm(bench: Bench) -> None:
    wanted = os.environ.get(CRASH)
    if wanted is None:
        return
    backend = bench.runtime.backend
    start = backend.start

    def starting(folder: Path, order: JobOrder) -> bool:
        if wanted == "after_start":
            start(folder, order)
        os.kill(os.getpid(), 9)
        return True

    setattr(backend, "start", starting)  # noqa: B010 - the method is replaced on purpose


async def main(url: str, home: Path) -> None:
    bench = Bench(url, home)
    _arm(bench)
    await bench.runtime.start()
    print("started", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
