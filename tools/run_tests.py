"""Run every suite, print each one's time, and check the coverage over all of them.

The seed of everything random is printed; ``BURNISH_TEST_SEED`` repeats a run.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("unit", "integration", "e2e", "browser", "chaos")
WORKERS = {"unit": 0, "integration": 1}
"""Suites whose tests share nothing, so that they run on all cores, and by how many workers more: those of integration
wait for processes much of the time. e2e and chaos have the machine to themselves, and are not measured for coverage: it
would slow the very processes whose recovery is timed, and what only they reach should have a smaller test."""
APT_PACKAGES = {
    "postgresql": "/usr/lib/postgresql/*/bin/initdb",
    "libfaketime": "/usr/lib/*/faketime/libfaketime.so.1",
    "redis-server": "/usr/bin/redis-server",
}
MINIMUM_COVERAGE = 85


def main() -> None:
    """Run the suites named (all by default); exit non-zero if one failed or coverage is too low."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    suites = [suite for suite in SUITES if (ROOT / "tests" / suite).is_dir() and suite in (arguments.suites or SUITES)]
    seed = os.environ.get("BURNISH_TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed} (BURNISH_TEST_SEED={seed} repeats this run)", flush=True)
    environment = dict(
        os.environ, BURNISH_TEST_SEED=seed, BURNISH_TEST_FULL="1" if arguments.full else "", HF_HUB_OFFLINE="1",
        COVERAGE_FILE=str(ROOT / ".coverage"),
    )  # fmt: skip
    say_missing()
    for stale in ROOT.glob(".coverage*"):
        stale.unlink()
    rows = [run(suite, environment) for suite in suites]
    whole = set(suites) == {suite for suite in SUITES if (ROOT / "tests" / suite).is_dir()}
    covered = coverage(environment, enforce=whole)
    print("\nsuite         seconds  outcome")
    for suite, seconds, code in rows:
        print(f"{suite:<12} {seconds:>8.0f}  {'passed' if code == 0 else f'FAILED (exit {code})'}")
    if any(code for _, _, code in rows) or not covered:
        sys.exit(1)


def run(suite: str, environment: dict[str, str]) -> tuple[str, float, int]:
    """Run one suite under coverage; return its name, seconds and exit status."""
    print(f"\n== {suite}", flush=True)
    started = time.monotonic()
    measured = ["-m", "coverage", "run"] if suite in WORKERS else []
    command = [sys.executable, *measured, "-m", "pytest", "-q", f"tests/{suite}", "--durations=25"]
    if suite in WORKERS:
        command += ["-n", str(min(4, os.cpu_count() or 1) + WORKERS[suite]), "--dist", "worksteal"]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return suite, time.monotonic() - started, code


def coverage(environment: dict[str, str], *, enforce: bool) -> bool:
    """Combine what the suites and the processes they started measured; tell whether it is enough."""
    base = [sys.executable, "-m", "coverage"]
    subprocess.run([*base, "combine", "-q"], cwd=ROOT, env=environment, check=False)
    report = [*base, "report"] + ([f"--fail-under={MINIMUM_COVERAGE}"] if enforce else [])
    return subprocess.run(report, cwd=ROOT, env=environment, check=False).returncode == 0 or not enforce


def say_missing() -> None:
    """Print one line that installs what some tests need and is not here; in CI that is a failure."""
    missing = [name for name, pattern in APT_PACKAGES.items() if not list(Path("/").glob(pattern[1:]))]
    if not missing:
        return
    line = f"sudo apt-get install -y {' '.join(missing)}"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        sys.exit(f"missing: {line}")
    print(f"tests that need {', '.join(missing)} will be reported as not run; to run them: {line}", flush=True)


if __name__ == "__main__":
    main()
