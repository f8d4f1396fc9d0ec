"""Processes that outlive whoever started them: hosts of jobs and serving replicas.

A process is known by its pid, its start time in clock ticks and the machine's boot id, never by a heartbeat: a slow
process is not dead, and a pid that was given to another process is not taken for ours. Linux only (``/proc``).
"""

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from burnish.core.threads import thread_environment

_PAGE = resource.getpagesize()
_ALLOWED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME", "PYTHONPATH", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "COVERAGE_PROCESS_CONFIG",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TORCH_HOME", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)  # fmt: skip
_OOM_SCORE = 500


@dataclass(frozen=True)
class ProcessId:
    """One process of one boot of one machine."""

    pid: int
    started_ticks: int
    boot_id: str


@cache
def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """Return who has ``pid`` now; None if nobody lives there (a zombie does not live)."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return ProcessId(pid, int(fields[19]), boot_id())


def this_process() -> ProcessId:
    """Return the caller's own identity."""
    found = identify(os.getpid())
    assert found is not None, "the caller lives"
    return found


def alive(process: ProcessId) -> bool:
    """Tell whether this very process still lives. A zombie is dead; a stopped or slow one is alive."""
    return identify(process.pid) == process


def allow_listed_env(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a host or replica: chosen variables, its threads' own, and no secret of the server."""
    chosen = {name: os.environ[name] for name in _ALLOWED if name in os.environ}
    chosen.update(thread_environment(threads))
    chosen.update({"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"})
    chosen.update(extra or {})
    return chosen


def spawn(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: Path, keep: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start a process in a session and process group of its own, that inherits no descriptor but those in ``keep``.

    Its output and errors are appended to the file ``stdout``. It becomes the kernel's first choice when memory runs
    out, before the server. The caller keeps the handle and polls it, so that no zombie stays.
    """
    with stdout.open("ab") as output:
        process = subprocess.Popen(
            list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, close_fds=True, pass_fds=tuple(keep),
        )  # fmt: skip
    with suppress(OSError):  # it may have ended already
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(_OOM_SCORE))
    return process


class Child:
    """A process of ours that may outlive us: collected when it ends, and no fuss if we end first."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self._status = process.poll()
        self._lock = threading.Lock()
        process.returncode = 0 if self._status is None else self._status  # collected here, not by the handle

    def poll(self) -> int | None:
        """Return the exit status (negative: the signal), or None while it lives."""
        with self._lock:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    self._status = -1
                else:
                    self._status = os.waitstatus_to_exitcode(status) if pid else None
            return self._status


def group_members(leader: ProcessId) -> list[ProcessId]:
    """Return the living processes of the session that ``leader`` started, itself included if it lives.

    Empty if another process now has the leader's pid: then every process of that session is somebody else's.
    """
    if leader.boot_id != boot_id():
        return []
    holder = identify(leader.pid)
    if holder is not None and holder != leader:
        return []
    found = []
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None and fields[0] not in "ZX" and int(fields[3]) == leader.pid:
            found.append(ProcessId(pid, int(fields[19]), leader.boot_id))
    return found


def signal_group(leader: ProcessId, number: signal.Signals) -> int:
    """Send a signal to each living process of the leader's session; return how many got it."""
    sent = 0
    for member in group_members(leader):
        if alive(member):
            with suppress(ProcessLookupError):
                os.kill(member.pid, number)
                sent += 1
    return sent


def signal_process(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to this very process; False if it does not live."""
    if not alive(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False


def kill_group(leader: ProcessId, patience_seconds: float = 5.0) -> bool:
    """Kill (KILL) the leader's whole session and wait until none lives; False if some still do (stuck in the kernel)."""
    deadline = time.monotonic() + patience_seconds
    while signal_group(leader, signal.SIGKILL):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def terminate_group(leader: ProcessId, grace_seconds: float) -> bool:
    """Ask the leader's session to end (TERM), then kill what lives after the grace. Blocks; True when all are gone."""
    signal_group(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline:
        if not group_members(leader):
            return True
        time.sleep(0.02)
    return kill_group(leader)


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size; shared pages count by share. 0 if it does not live.

    Falls back to the resident size where the kernel does not tell.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return rss_bytes(pid)


def rss_bytes(pid: int) -> int:
    """Return a process's resident size; 0 if it does not live. Cheap, and never below :func:`pss_bytes`."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def group_memory_bytes(leader: ProcessId, limit: int | None = None) -> int:
    """Return the memory of the leader's session: PSS summed; the cheaper resident sum if that is below ``limit``."""
    members = group_members(leader)
    if limit is not None:
        resident = sum(rss_bytes(member.pid) for member in members)
        if resident <= limit:
            return resident
    return sum(pss_bytes(member.pid) for member in members)


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` after the command's name: [0] state, [3] session, [19] start ticks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
