"""Rows are read in threads of their own, and nobody fills them."""

import asyncio
import threading
from pathlib import Path

import pytest

from burnish.components.data_management import contents
from burnish.components.data_management.reading import RowReading
from burnish.core.errors import Busy


async def test_one_project_leaves_room_for_others_and_none_takes_the_threads_of_all() -> None:
    reading, go_on = RowReading(), threading.Event()

    def slowly() -> str:
        go_on.wait(30)
        return "read"

    try:
        waiting = [asyncio.ensure_future(reading.run("red", slowly)) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="8 requests that read this project's rows"):
            await reading.run("red", slowly)
        waiting[7].cancel()
        await asyncio.gather(waiting[7], return_exceptions=True)
        with pytest.raises(Busy):  # its client went, and it is read all the same
            await reading.run("red", slowly)
        other = asyncio.ensure_future(reading.run("blue", lambda: "blue's"))
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: "another's work") == "another's work"
    finally:
        go_on.set()
    assert await other == "blue's"
    assert await asyncio.gather(*waiting[:7]) == ["read"] * 7
    assert await reading.run("red", slowly) == "read"


def test_beyond_the_end_nothing_is_read(tmp_path: Path) -> None:
    assert contents.preview(tmp_path / "no folder", 10, 10, 5).rows == []
