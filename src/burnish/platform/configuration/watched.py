"""The configuration file of a process, read again when it changes; a wrong one is told of and not used."""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import watchfiles

from burnish.core.errors import FieldProblem, NotFound
from burnish.platform.configuration import environments
from burnish.platform.configuration.file import ConfigurationFile, read_file

log = logging.getLogger(__name__)

_DEBOUNCE_MS = 50
_STEP_MS = 20
_SETTLE_SECONDS = 0.03
_SETTLE_TRIES = 10
_MOUNTED = "..data"
"""What Kubernetes swaps when a mounted ConfigMap changes; the file itself is a link through it."""

Stamp = tuple[int, ...]


class WatchedFile:
    """A file (or none), as it was when it was last right, and what is wrong with it now."""

    def __init__(self, path: Path | None, environment: str) -> None:
        self.path = None if path is None else path.expanduser().absolute()
        self._environment = environment
        self._stamp = self._stamp_now()
        found = ConfigurationFile() if self.path is None else read_file(self.path)
        self.problems = self._wrong(found)
        self.good = found if not self.problems else ConfigurationFile()

    @property
    def digest(self) -> str:
        """Of what is obeyed of it."""
        return self.good.digest

    async def look(self) -> None:
        """Read the file again if it changed; wait until whoever writes it has finished."""
        if self.path is None or (stamp := await asyncio.to_thread(self._stamp_now)) == self._stamp:
            return
        for _ in range(_SETTLE_TRIES):
            found = await asyncio.to_thread(read_file, self.path)
            await asyncio.sleep(_SETTLE_SECONDS)
            before, stamp = stamp, await asyncio.to_thread(self._stamp_now)
            if stamp == before:
                break
        self._stamp = stamp
        self.problems = self._wrong(found)
        if not self.problems:
            log.info("the configuration file was read again")
            self.good = found
        for problem in self.problems:
            log.error("%s: %s (what the file said before is obeyed on)", problem.where, problem.message)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` when the file may have changed, until cancelled. Only a hint: :meth:`look` sees for itself."""
        assert self.path is not None
        names = {self.path.name, _MOUNTED}
        try:
            async for _ in watchfiles.awatch(
                self.path.parent, watch_filter=lambda _change, path: os.path.basename(path) in names,
                debounce=_DEBOUNCE_MS, step=_STEP_MS, recursive=False,
            ):  # fmt: skip
                changed()
        except (OSError, RuntimeError) as error:  # its folder went away, or the kernel has no watches left
            log.warning("the folder of the configuration file cannot be watched, it is polled: %s", error)

    def _wrong(self, found: ConfigurationFile) -> tuple[FieldProblem, ...]:
        """Return everything that makes a file unfit for this process."""
        if found.problems:
            return found.problems
        try:
            environments.find(found.environments, self._environment)
        except NotFound as error:
            return (FieldProblem(where="BURNISH_ENVIRONMENT", message=error.message, hint=error.hint),)
        return ()

    def _stamp_now(self) -> Stamp:
        if self.path is not None:
            with suppress(OSError):
                found = os.stat(self.path)
                return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
        return ()
