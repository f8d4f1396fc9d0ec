"""Reading an upload in a process of its own, with limits: whatever is in the file, the server keeps serving.

As a program (``python -m ...ingest``) it reads an :class:`Order` from standard input and answers an :class:`Outcome` on
standard output. It dies with the server, by the kernel's hand.
"""

import asyncio
import ctypes
import errno
import os
import resource
import signal
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from burnish.components.data_management.formats import Limits
from burnish.components.data_management.formats.base import TOTAL_SIZE
from burnish.components.data_management.make_version import NewVersion, UploadOptions, make_version
from burnish.core.errors import BurnishError, ErrorBody, OutOfDisk, TooLarge
from burnish.infra.problems import error_from_problem
from burnish.infra.processes import allow_listed_env

_MEMORY_BYTES = 4 << 30
_SECONDS = 3600
_PR_SET_PDEATHSIG = 1


class Order(BaseModel):
    """What the process is to do."""

    model_config = ConfigDict(frozen=True)

    upload: str
    options: UploadOptions
    target: str
    room: int
    parent: int


class Outcome(BaseModel):
    """What came of it: one of the two."""

    model_config = ConfigDict(frozen=True)

    version: NewVersion | None = None
    error: ErrorBody | None = None


async def ingest(descriptor: int, options: UploadOptions, target: Path, room: int) -> NewVersion:
    """Run :func:`~.make_version.make_version` on an open file in a process of its own.

    Cancelling kills the process; what it wrote into ``target`` is the caller's to discard.

    Args:
        descriptor: Of the upload, open for reading.
        options: What the user said.
        target: Empty folder for the version's files.
        room: Bytes that may be written there.

    Raises:
        BurnishError: what ``make_version`` raised.
        OutOfDisk: the rows do not fit into ``room``.
        TooLarge: also, it took too much memory or time.
    """
    order = Order(
        upload=f"/proc/self/fd/{descriptor}", options=options, target=str(target), room=max(room, 0),
        parent=os.getpid(),
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, pass_fds=(descriptor,), env=allow_listed_env(1),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SECONDS):
            output, complaints = await process.communicate(order.model_dump_json().encode())
    except TimeoutError:
        message = f"reading the file took longer than {_SECONDS} s"
        raise TooLarge(message, where=options.file_name, hint="upload it in parts") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    outcome = _outcome(process.returncode, output, complaints, options.file_name)
    if outcome.version is not None:
        return outcome.version
    assert outcome.error is not None, "an outcome is a version or an error"
    raise error_from_problem(outcome.error.model_dump(), 500)


def _outcome(code: int | None, output: bytes, complaints: bytes, name: str) -> Outcome:
    if code == 0:
        return Outcome.model_validate_json(output)
    if code == -signal.SIGKILL or b"MemoryError" in complaints or b"bad_alloc" in complaints:
        message = f"reading the file took more memory than there is, or than {_MEMORY_BYTES >> 30} GiB"
        return Outcome(error=TooLarge(message, where=name, hint="upload it in parts").body())
    last = complaints.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return Outcome(error=BurnishError(f"reading the file failed (status {code}): {last[0]}", where=name).body())


def main() -> None:
    """Carry out the order on standard input."""
    order = Order.model_validate_json(sys.stdin.buffer.read())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order.parent:  # it died before it could be tied to us
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # the server's answers come first
    sys.stdout.buffer.write(_carry_out(order).model_dump_json().encode())


def _carry_out(order: Order) -> Outcome:
    most = Limits().total_bytes
    limits = Limits(total_bytes=min(most, order.room))
    try:
        return Outcome(version=make_version(Path(order.upload), order.options, Path(order.target), limits))
    except TooLarge as error:
        if error.where != TOTAL_SIZE or order.room >= most:
            return Outcome(error=error.body())
        return Outcome(error=_no_room(f"the rows do not fit on the disk: {error.message}").body())
    except BurnishError as error:
        return Outcome(error=error.body())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return Outcome(error=_no_room("the disk is full; nothing was kept").body())


def _no_room(message: str) -> OutOfDisk:
    return OutOfDisk(message, hint="free space on the artifacts' disk, or move it (BURNISH_ARTIFACT_URL)")


if __name__ == "__main__":
    main()
