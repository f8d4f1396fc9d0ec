"""What an upload leaves behind in this process: descriptors and reading processes."""

import os
from collections.abc import Iterator
from pathlib import Path


def descriptors_of_uploads() -> list[str]:
    """Open files of uploads."""
    return [target for target in _links() if "/uploads/" in target]


def _links() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue


def readers() -> list[int]:
    """Living reading processes that are children of this one."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and b"data_management.ingest" in Path(f"/proc/{name}/cmdline").read_bytes():
                status = Path(f"/proc/{name}/status").read_text()
                if f"PPid:\t{os.getpid()}\n" in status:
                    found.append(int(name))
        except OSError:
            continue
    return found
