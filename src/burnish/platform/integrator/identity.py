"""Names of instances inside this process: a number kept in the home, so that a restart updates its row."""

import fcntl
import os
import re
from pathlib import Path


class InstanceNumber:
    """The lowest number that no other living process of the home holds. The kernel frees it when the process ends."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = 1
        while (descriptor := _try(run_dir / f"instance.{number}.lock")) is None:
            number += 1
        self.number = number
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the number back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _try(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def embedded_id(component_type: str, node: str, number: int) -> str:
    """Return the id of an instance inside a process."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", node) or "node"
    return f"{component_type}-{plain}-{number}"[:255]
