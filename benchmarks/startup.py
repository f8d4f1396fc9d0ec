"""How long from `burnish serve` to ready, and what does importing the server cost?

    python benchmarks/startup.py [--rounds 7]

Each round starts a server on a fresh home (the database is made and migrated) and one on the same home again, and, as the
baseline, an interpreter that imports FastAPI, SQLAlchemy and uvicorn alone, which no server can be faster than.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BASELINE = "import fastapi, sqlalchemy.ext.asyncio, uvicorn, aiohttp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    figures: dict[str, list[float]] = {
        "first start": [],
        "next start": [],
        "import burnish.app": [],
        "its libraries alone": [],
    }
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            figures["first start"].append(until_ready(Path(folder)))
            figures["next start"].append(until_ready(Path(folder)))
        figures["import burnish.app"].append(importing("import burnish.app"))
        figures["its libraries alone"].append(importing(BASELINE))
    base = statistics.median(figures["its libraries alone"])
    print(f"{'':<22}{'median s':>10}{'worst s':>10}{'x libraries':>13}")
    for name, values in figures.items():
        print(
            f"{name:<22}{statistics.median(values):>10.2f}{max(values):>10.2f}{statistics.median(values) / base:>13.1f}"
        )


def until_ready(home: Path) -> float:
    """Return the seconds from starting the process to `/platform/ready` answering 200."""
    environment = {**os.environ, "BURNISH_HOME": str(home), "BURNISH_PORT": "0"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish.cli", "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        while not ready(home):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def ready(home: Path) -> bool:
    try:
        url = json.loads((home / "run" / "server.json").read_text())["url"]
        with urllib.request.urlopen(f"{url}/platform/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def importing(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
