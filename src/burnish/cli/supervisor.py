"""The supervisor behind ``burnish up``: starts processes, starts again what ends, and finds them again after its own death.

Each process is in a session of its own and writes into a file, so that it outlives a supervisor that is killed. The
state file says which process is which, by pid and start time; the next supervisor of the same file adopts them.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from burnish.cli import composition
from burnish.cli.composition import Launch
from burnish.cli.first_key import fresh_key_file
from burnish.cli.processes import boot_id, tell, this_place
from burnish.cli.supervised import State, StateFile, UnitRecord, folder_of, last_lines, read_state, reason, short
from burnish.client.address import ProcessFile, process_file, started_ticks
from burnish.core.errors import Conflict, InvalidRequest

TICK_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""Between looks at restart intents."""
READY_SECONDS = 120.0
"""A process that is not ready by then is started again."""
STOP_SECONDS = 60.0
"""From TERM to KILL: several times what a process gives its requests in flight (`gateway.drain_seconds`) and its loops."""
DRAIN_SECONDS = 120.0
"""From INT to KILL: jobs get a minute of it to write a checkpoint, and replicas to end."""
STEADY_SECONDS = 30.0
"""One that was ready for so long had no trouble of its own: the count of failures starts again."""
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
MAX_FAILURES = 6
"""Ends in a row after which a process is given up, until the file changes or SIGHUP comes."""
SERVE = (sys.executable, "-m", "burnish.cli", "serve")


@dataclass
class Unit:
    """One process that is to run."""

    launch: Launch
    home: Path
    log: Path
    state: State = "waiting"
    pid: int | None = None
    ticks: int | None = None
    digest: str = ""
    """Of the launch that it was started with."""
    since: float = field(default_factory=time.time)
    at: float = field(default_factory=time.monotonic)
    """When the state began."""
    due: float = 0.0
    failures: int = 0
    """Ends in a row."""
    crashes: int = 0
    """Those of them that came after it had been ready: the others are forgotten once it is."""
    logged: int = 0
    """Where in the log its process began to write."""
    restarts: int = 0
    url: str | None = None
    problem: str | None = None
    child: subprocess.Popen[bytes] | None = None
    drains: bool = False
    """It was told by INT: it pauses its jobs and ends its replicas before it ends."""

    @property
    def alive(self) -> bool:
        """Whether its process lives. A child's end counts once it was waited for: only then how it ended is known."""
        if self.child is not None:
            return self.child.poll() is None
        return self.pid is not None and started_ticks(self.pid) == self.ticks

    def retry(self) -> None:
        """Let it be tried again at once, as if it had never failed."""
        self.failures = self.crashes = 0
        self.due = 0.0
        if self.state == "given_up":
            self.become("waiting")

    def become(self, state: State, problem: str | None = None) -> None:
        """Change the state."""
        self.state, self.problem = state, problem
        self.since, self.at = time.time(), time.monotonic()

    def record(self) -> UnitRecord:
        """Return what the state file is to say."""
        return UnitRecord(
            key=self.launch.key, components=self.launch.components, state=self.state, pid=self.pid,
            started_ticks=self.ticks, boot_id=boot_id(), digest=self.digest, home=str(self.home), url=self.url,
            since=self.since, failures=self.failures, restarts=self.restarts, problem=self.problem, log=str(self.log),
        )  # fmt: skip


class Supervisor:
    """Keeps the processes of one file running. One a file."""

    def __init__(
        self, file: Path, home: Path, say: Callable[[str], None],
        wanted_restarts: Callable[[str, Sequence[tuple[str, Path]]], set[int]], command: Sequence[str] = SERVE,
    ) -> None:  # fmt: skip
        """Make it, without a process.

        Args:
            file: the composition.
            home: of processes that name none of their own; also keeps the state and the logs.
            say: prints a line.
            wanted_restarts: given this supervisor's id and the URLs and homes of platforms, returns the pids that are to be restarted.
            command: starts one process, which is told by variables what it is to be.
        """
        self.file = file.resolve()
        self.home = home
        self.folder = folder_of(self.file, home)
        self.id = f"up-{short(f'{self.file} {home.resolve()} {this_place()}')}"
        self._say = say
        self._wanted_restarts = wanted_restarts
        self._command = tuple(command)
        self._units: dict[str, Unit] = {}
        self._rolling: dict[str, int] = {}
        """Which are to be started anew, one after the other, with the pid that is to go."""
        self._shown_keys: set[tuple[Path, float]] = set()
        self._signals: list[int] = []
        self._changed_at = 0.0
        self._intents: set[int] = set()
        self._looking: threading.Thread | None = None
        self._looked_at = 0.0
        self._lock: int | None = None
        self._unwritten = False
        """The state file could not be written last time."""

    # What it is told.

    def signal(self, number: int) -> None:
        """Take a signal, to be obeyed in the loop."""
        self._signals.append(number)

    def run(self) -> None:
        """Supervise until a signal ends it: INT drains the processes, TERM leaves their jobs and replicas running.

        Raises:
            Conflict: another supervisor has this file.
            InvalidRequest: the file is not as it has to be.
        """
        launches = composition.read(self.file)
        self._take()
        try:
            self._changed_at = self._modified()
            self._adopt(launches)
            while not (ending := [one for one in self._signals if one in (signal.SIGINT, signal.SIGTERM)]):
                self._turn()
                time.sleep(TICK_SECONDS)
            self._end_all(ending[0])
        finally:
            self._write()
            if self._lock is not None:
                os.close(self._lock)

    def _take(self) -> None:
        for folder in (self.home, self.folder.parent, self.folder):  # `parents` would make the home open to all
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = read_state(self.file, self.home)
            pid = f" (pid {other.supervisor})" if other else ""
            os.close(self._lock)
            self._lock = None
            raise Conflict(
                f"another supervisor{pid} has {self.file}", where=str(self.file),
                hint="look at it with `burnish up --status`, end it with Ctrl-C or TERM; it reads the file again when it changes",
            ) from error  # fmt: skip

    def _adopt(self, launches: Sequence[Launch]) -> None:
        """Take over what an earlier supervisor left running; what has changed since is started anew, one by one."""
        known = read_state(self.file, self.home)
        for record in known.units if known is not None else ():
            if record.pid is None or record.boot_id != boot_id() or started_ticks(record.pid) != record.started_ticks:
                continue
            launch = Launch(record.key, record.components, None, {})
            unit = Unit(launch, Path(record.home), Path(record.log), pid=record.pid, ticks=record.started_ticks)
            unit.digest, unit.restarts, unit.url = record.digest, record.restarts, record.url
            with contextlib.suppress(OSError):
                unit.logged = unit.log.stat().st_size
            unit.become("ready" if record.url else "starting")
            self._units[record.key] = unit
            self._say(f"{record.key}: adopted (pid {record.pid})")
        self._want(launches)

    def _want(self, launches: Sequence[Launch]) -> None:
        """Make the units those of the file: new ones start, others stop, changed ones are started anew one by one."""
        wanted = {launch.key: launch for launch in launches}
        for key, unit in self._units.items():
            if key not in wanted and unit.state != "stopped":
                self._say(f"{key}: is no longer in the file")
                self._stop(unit, signal.SIGTERM)
        for key, launch in wanted.items():
            found = self._units.get(key)
            if found is None or found.state == "stopped":
                self._units[key] = Unit(launch, self._home_of(launch), self.folder / f"{key}.log")
                continue
            found.launch, found.home = launch, self._home_of(launch)
            found.retry()
            if found.pid is not None and found.digest != launch.digest:
                self._rolling[key] = found.pid

    def _home_of(self, launch: Launch) -> Path:
        given = launch.environment.get("BURNISH_HOME")
        return Path(given).expanduser().resolve() if given else self.home

    # The loop.

    def _turn(self) -> None:
        """Look at everything once."""
        before = [unit.record() for unit in self._units.values()]
        if signal.SIGHUP in self._signals:
            self._signals = [one for one in self._signals if one != signal.SIGHUP]
            self._say("SIGHUP: starting every process anew, one after the other")
            self._reread()
            for unit in self._units.values():
                unit.retry()
            self._rolling = {key: unit.pid for key, unit in self._units.items() if unit.pid is not None}
        elif self._modified() != self._changed_at:
            self._say(f"{self.file.name} has changed")
            self._reread()
        self._look_for_intents()
        for unit in list(self._units.values()):
            self._advance(unit)
        self._roll()
        if self._unwritten or [unit.record() for unit in self._units.values()] != before:
            self._write()

    def _advance(self, unit: Unit) -> None:
        """One step of one process."""
        now = time.monotonic()
        match unit.state:
            case "waiting" if now >= unit.due:
                self._start(unit)
            case "starting" | "ready" if not unit.alive:
                self._ended(unit)
            case "starting":
                if (url := self._url_of(unit)) is not None:
                    self._is_ready(unit, url)
                elif now - unit.at > READY_SECONDS:
                    self._kill(unit)
                    self._ended(unit, f"it was not ready within {READY_SECONDS:g} s")
            case "ready":
                if unit.failures and now - unit.at > STEADY_SECONDS:
                    unit.failures = unit.crashes = 0
                if unit.pid in self._intents:
                    self._intents.discard(unit.pid or 0)
                    self._say(f"{unit.launch.key}: the platform asks for its restart")
                    self._stop(unit, signal.SIGTERM)
            case "stopping":
                self._stopping(unit, now)
            case _:
                pass

    def _is_ready(self, unit: Unit, url: str) -> None:
        unit.url, unit.failures = url, unit.crashes
        unit.become("ready")
        self._say(f"{unit.launch.key}: ready at {url} (pid {unit.pid})")
        if unit.launch.with_platform and (key := fresh_key_file(unit.home)) is not None and key not in self._shown_keys:
            self._shown_keys.add(key)
            self._say(f"{key[0]} has the administrator's first key: burnish login --key - < {key[0]} && rm {key[0]}")

    def _stopping(self, unit: Unit, now: float) -> None:
        patience = DRAIN_SECONDS if unit.drains else STOP_SECONDS
        if unit.alive and now - unit.at > patience:
            self._say(f"{unit.launch.key}: has not ended within {patience:g} s; killed")
            self._kill(unit)
        if unit.alive:
            return
        wanted = self._wants(unit)
        unit.pid = unit.ticks = unit.url = unit.child = None
        unit.digest = ""
        if not wanted:
            unit.become("stopped")
            return
        unit.restarts += 1
        unit.due = 0.0
        unit.become("waiting")

    def _wants(self, unit: Unit) -> bool:
        """Whether a process that ends is to be started again: the file has it, and this is not the end."""
        ending = any(one in (signal.SIGINT, signal.SIGTERM) for one in self._signals)
        return not ending and unit.launch.key in {launch.key for launch in self._launches}

    def _start(self, unit: Unit) -> None:
        try:
            unit.child = self._spawn(unit)
        except OSError as error:  # the disk is full, no memory, no more processes: it passes
            self._ended(unit, f"it could not be started: {error}")
            return
        unit.pid, unit.ticks, unit.digest = unit.child.pid, started_ticks(unit.child.pid), unit.launch.digest
        unit.url = None
        unit.become("starting")
        self._write()  # at once: a supervisor that is killed now must find it again
        self._say(f"{unit.launch.key}: started (pid {unit.pid}, log {unit.log})")

    def _spawn(self, unit: Unit) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **unit.launch.environment}
        environment |= {"BURNISH_COMPONENTS": unit.launch.components, "BURNISH_SUPERVISED_BY": self.id}
        environment["BURNISH_HOME"] = str(unit.home)
        environment["BURNISH_PORT"] = str(unit.launch.port or 0)
        unit.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with unit.log.open("ab") as output:
            unit.logged = output.tell()
            return subprocess.Popen(
                self._command,
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _ended(self, unit: Unit, why: str | None = None) -> None:
        """A process ended by itself: start it again after a while, or give it up."""
        status = None if unit.child is None else unit.child.poll()
        why = why or (f"it ended with status {status}" if status is not None else "it ended")
        if status is not None and status < 0:
            why = f"it was ended by signal {signal.Signals(-status).name}"
        unit.failures += 1
        unit.crashes += unit.state == "ready"
        unit.restarts += 1
        unit.pid = unit.ticks = unit.url = unit.child = None
        said = reason(unit.log, unit.logged, killed=status is not None and status < 0)
        because = f": {said}" if said else ""
        if unit.failures >= MAX_FAILURES:
            unit.become("given_up", f"{why}; {unit.failures} times in a row{because}")
            self._say(f"{unit.launch.key}: given up: {unit.problem}. The end of its log ({unit.log}):")
            for line in last_lines(unit.log):
                self._say(f"    {line}")
            self._say(f"{unit.launch.key}: mend it, then change {self.file.name} or send SIGHUP")
            return
        pause = BACKOFF_SECONDS[min(unit.failures - 1, len(BACKOFF_SECONDS) - 1)]
        unit.due = time.monotonic() + pause
        unit.become("waiting", f"{why}{because}")
        self._say(f"{unit.launch.key}: {unit.problem}; again in {pause:g} s")

    def _stop(self, unit: Unit, number: int) -> None:
        if unit.pid is not None and unit.alive:
            if unit.state == "stopping" and number == signal.SIGTERM:
                return  # it was told, and answers what is in flight: a second TERM would end it at once
            tell(unit.pid, number)
            unit.drains = number == signal.SIGINT
            unit.become("stopping")
        elif unit.state != "stopping" and not self._wants(unit):
            unit.pid = unit.ticks = None
            unit.become("stopped")
        elif unit.state in ("starting", "ready"):
            self._ended(unit)  # just now, by itself

    def _kill(self, unit: Unit) -> None:
        """KILL the server alone: its jobs and replicas are in sessions of their own, and are found again."""
        if unit.pid is not None and unit.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(unit.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while unit.alive and time.monotonic() < deadline:
                time.sleep(0.02)

    def _roll(self) -> None:
        """Start the next process anew once all others are as they should be: one is away at a time."""
        if not self._rolling or any(unit.state in ("starting", "stopping", "waiting") for unit in self._units.values()):
            return
        key = next(iter(self._rolling))
        pid, unit = self._rolling.pop(key), self._units.get(key)
        if unit is None or unit.pid != pid:
            return  # it has ended by itself since, and was started anew with that
        self._say(f"{key}: starting it anew")
        self._stop(unit, signal.SIGTERM)

    def _reread(self) -> None:
        self._changed_at = self._modified()
        try:
            self._want(composition.read(self.file))
        except InvalidRequest as error:
            said = "; ".join(f"{one.where}: {one.message}" for one in error.problems) or error.message
            self._say(f"{self.file.name} cannot be used, everything stays as it is: {said}")

    @property
    def _launches(self) -> tuple[Launch, ...]:
        try:
            return composition.read(self.file)
        except InvalidRequest:
            return tuple(unit.launch for unit in self._units.values())

    def _modified(self) -> float:
        try:
            return self.file.stat().st_mtime
        except OSError:
            return self._changed_at

    def _url_of(self, unit: Unit) -> str | None:
        assert unit.pid is not None, "it was started"
        with contextlib.suppress(OSError, ValidationError):
            found = ProcessFile.model_validate_json(process_file(unit.home, unit.pid).read_text())
            return found.url if found.started_ticks == unit.ticks else None
        return None

    def _look_for_intents(self) -> None:
        """Ask the platform, beside the loop, whose restart it wants."""
        if self._looking is not None and self._looking.is_alive():
            return
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        platforms = [
            (one.url, one.home)
            for one in self._units.values()
            if one.url and one.launch.with_platform and one.state == "ready"
        ]
        if not platforms:
            return
        self._looked_at = time.monotonic()
        self._looking = threading.Thread(target=self._look, args=(platforms,), daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads now: the next time
            self._looking.start()

    def _look(self, platforms: list[tuple[str, Path]]) -> None:
        self._intents = self._wanted_restarts(self.id, platforms)

    # Its end, and what it writes.

    def _end_all(self, number: int) -> None:
        """End everything: first what takes requests, then the components, each once those before have gone."""
        self._say(
            "Ending: " + ("jobs are paused, replicas end" if number == signal.SIGINT else "jobs and replicas run on")
        )
        units = [unit for unit in self._units.values() if unit.state not in ("stopped", "given_up")]
        for unit in sorted(units, key=lambda one: not one.launch.with_platform):
            self._stop(unit, number)
            while unit.state == "stopping":
                if self._signals.count(signal.SIGINT) > 1:
                    self._kill(unit)
                self._stopping(unit, time.monotonic())
                time.sleep(TICK_SECONDS / 4)
            unit.become("stopped")
            self._say(f"{unit.launch.key}: ended")
            self._write()

    def _write(self) -> None:
        state = StateFile(
            file=str(self.file), supervisor=os.getpid(), supervisor_ticks=started_ticks(os.getpid()) or 0,
            units=tuple(unit.record() for unit in self._units.values()),
        )  # fmt: skip
        path = self.folder / "state.json"
        draft = path.with_name(".state.json")
        try:
            draft.write_text(state.model_dump_json(indent=1))
            draft.rename(path)
        except OSError as error:
            if not self._unwritten:
                self._say(f"{path} cannot be written, the processes run on; tried again until it can: {error}")
            self._unwritten = True
        else:
            self._unwritten = False
