"""Reading a version's rows for who looks at them: in threads of its own, so that no other work waits for it.

A version may have gigabytes, and a thread goes on when its client has hung up: so what may wait is bounded, for all and
for each project.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from burnish.core.errors import Busy

_AT_ONCE = 2
_WAITING = 32
_OF_A_PROJECT = 8

Found = TypeVar("Found")


class RowReading:
    """Runs what reads rows: two at once, at most eight of a project and 32 in all, those that wait included."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rows")
        self._under_way: Counter[str] = Counter()

    async def run(self, project_id: str, read: Callable[[], Found]) -> Found:
        """Return what ``read`` returns; it runs to its end, whoever goes away meanwhile.

        Raises:
            Busy: as much is being read already as may be, for the project or for all.
        """
        if self._under_way[project_id] >= _OF_A_PROJECT or self._under_way.total() >= _WAITING:
            raise Busy(
                f"{self._under_way[project_id]} requests that read this project's rows are under way, "
                f"{self._under_way.total()} in all", hint="send it again in a moment", retry_after=1,
            )  # fmt: skip
        self._under_way[project_id] += 1
        reading = asyncio.get_running_loop().run_in_executor(self._threads, read)
        reading.add_done_callback(partial(self._ended, project_id))
        return await asyncio.shield(reading)

    def _ended(self, project_id: str, reading: "asyncio.Future[Found]") -> None:
        if not reading.cancelled():
            reading.exception()  # whoever asked may have gone: nobody else takes note of it
        self._under_way[project_id] -= 1
        if not self._under_way[project_id]:
            del self._under_way[project_id]
