"""A supervisor in a thread, over processes that only say that they are ready."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from burnish.cli.supervised import read_state
from burnish.cli.supervisor import Supervisor

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
name, home = os.environ["BURNISH_COMPONENTS"], Path(os.environ["BURNISH_HOME"])
print("started as", name, os.environ.get("MARK", ""), flush=True)
if os.environ.get("FAIL") and not Path(os.environ["FAIL"]).exists():
    sys.exit("this cannot work: the reason")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGINT, lambda *_: (print("drained", flush=True), sys.exit(0)))
ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
(home / "run").mkdir(parents=True, exist_ok=True)
one = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "components": name, "started_ticks": ticks}
draft = home / "run" / f"draft-{os.getpid()}"
draft.write_text(json.dumps(one))
draft.rename(home / "run" / f"process-{os.getpid()}.json")
while True:
    time.sleep(60)
"""


class Up:
    """A supervisor in a thread of its own."""

    def __init__(self, file: Path, home: Path) -> None:
        self.said: list[str] = []
        self.asked: set[int] = set()
        self.file, self.home = file, home
        command = (sys.executable, "-c", PROGRAM)
        self.supervisor = Supervisor(file, home, self.said.append, self._asked, command)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except BaseException as error:
            self.failure = error

    def _asked(self, _id: str, _platforms: Sequence[tuple[str, Path]]) -> set[int]:
        asked, self.asked = self.asked, set()
        return asked

    def pids(self) -> dict[str, int]:
        state = read_state(self.file, self.home)
        return {one.key: one.pid for one in state.units if one.pid and one.state == "ready"} if state else {}

    def until(self, wanted: Callable[[], object], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not wanted():
            assert time.monotonic() < deadline, "\n".join([*self.said, repr(self.failure)])
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> None:
        self.supervisor.signal(number)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def abandon(self) -> None:
        """As after a KILL of the supervisor: nothing more is done, the lock is free."""
        self.supervisor._turn = lambda: None  # type: ignore[method-assign]
        self.supervisor._end_all = lambda number: None  # type: ignore[method-assign]
        self.end()


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "burnish.yaml"
    path.write_text(text)
    return path


TWO = "processes:\n  platform: {components: platform}\n  tuning: {components: fine_tuning, replicas: 2}\n"
