"""Reading in a process of its own: what it answers, and what becomes of it when it dies or has no room."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from burnish.components.data_management import ingest as module
from burnish.components.data_management.ingest import ingest
from burnish.components.data_management.make_version import UploadOptions
from burnish.core.errors import BurnishError, InvalidRequest, OutOfDisk, TooLarge
from burnish.core.specs.data import DATA_FILE

OPTIONS = UploadOptions(file_name="a.jsonl")
ROOM = 1 << 40


@contextmanager
def opened(folder: Path, content: bytes) -> Iterator[int]:
    path = folder / "upload"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


ROW = b'{"text": "a fine film", "label": "good"}\n'


async def test_it_reads_a_file_without_a_name(tmp_path: Path) -> None:
    with opened(tmp_path, ROW * 3) as descriptor:
        made = await ingest(descriptor, OPTIONS, tmp_path, ROOM)
    assert (made.card.rows, made.card.exact_duplicates) == (3, 2)
    assert (tmp_path / DATA_FILE).read_text().count("\n") == 3


async def test_errors_come_back_typed_with_their_places(tmp_path: Path) -> None:
    with opened(tmp_path, ROW + b"{broken\n") as descriptor, pytest.raises(InvalidRequest) as caught:
        await ingest(descriptor, OPTIONS, tmp_path, ROOM)
    assert caught.value.where == "line 2"
    assert caught.value.problems[0].where == "line 2"
    assert caught.value.hint


async def test_no_room_is_told_apart_from_too_large(tmp_path: Path) -> None:
    with opened(tmp_path, ROW * 100) as descriptor, pytest.raises(OutOfDisk, match="do not fit on the disk"):
        await ingest(descriptor, OPTIONS, tmp_path, 1000)
    with opened(tmp_path, b'"' * (9 << 20)) as descriptor, pytest.raises(TooLarge, match="line 1 is longer"):
        await ingest(descriptor, OPTIONS, tmp_path, 20 << 20)


@pytest.mark.parametrize(
    ("code", "complaints", "error", "message"),
    [
        (-signal.SIGKILL, b"", TooLarge, "more memory than there is"),
        (1, b"Traceback ...\nMemoryError\n", TooLarge, "or than 4 GiB"),
        (-signal.SIGSEGV, b"", BurnishError, "status -11"),
        (1, b"Traceback ...\nRuntimeError: odd\n", BurnishError, "RuntimeError: odd"),
    ],
)
async def test_a_process_that_died_is_explained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    complaints: bytes,
    error: type[BurnishError],
    message: str,
) -> None:
    class Dead:
        returncode = code

        async def communicate(self, _order: bytes) -> tuple[bytes, bytes]:
            return b"", complaints

    async def started(*_arguments: object, **_options: object) -> Dead:
        return Dead()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    with opened(tmp_path, ROW) as descriptor, pytest.raises(error, match=message) as caught:
        await ingest(descriptor, OPTIONS, tmp_path, ROOM)
    assert caught.value.where == "a.jsonl"


async def test_too_much_memory_is_an_error_of_the_file(tmp_path: Path) -> None:
    """The limit is the kernel's: a reader that gets none says so instead of dying with the server."""
    script = f"import sys, {module.__name__} as m; m._MEMORY_BYTES = 64 << 20; sys.argv = ['ingest']; m.main()"  # the interpreter itself fits into 64 MiB, the buckets and keys of many rows do not
    order = module.Order(
        upload=str(tmp_path / "big"), options=OPTIONS, target=str(tmp_path), room=ROOM, parent=os.getpid()
    )
    with (tmp_path / "big").open("wb") as out:
        for number in range(150_000):
            out.write(b'{"text": "row %d says w%d", "label": "x"}\n' % (number, number))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, complaints = await process.communicate(order.model_dump_json().encode())
    assert process.returncode == 1
    assert b"MemoryError" in complaints
