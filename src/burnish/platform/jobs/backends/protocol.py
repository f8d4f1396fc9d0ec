"""What a backend promises: it starts hosts, finds them again, reads what they wrote, and ends them.

Synchronous; called in threads. Nothing here touches the database.
"""

from pathlib import Path
from typing import Protocol

from burnish.infra.processes import ProcessId
from burnish.platform.jobs.files import HostEvent, HostResult, JobOrder


class Backend(Protocol):
    """Runs hosts on one node."""

    def folder(self, job_id: str) -> Path:
        """Return where a new job's folder is to be."""

    def start(self, folder: Path, order: JobOrder) -> bool:
        """Start a host for the order, unless one lives in the folder already: then return False."""

    def find(self, folder: Path, incarnation: int) -> ProcessId | None:
        """Return the host of an incarnation, dead or alive; None if none has said who it is."""

    def newest_other(self, folder: Path, incarnation: int) -> ProcessId | None:
        """Return a living host of another incarnation."""

    def starting_ended(self, folder: Path) -> int | None:
        """Return the exit status of the last host that was started here by this process, if it has ended."""

    def locked(self, folder: Path) -> bool:
        """Tell whether some host holds the folder."""

    def alive(self, process: ProcessId) -> bool:
        """Tell whether this very process lives."""

    def result(self, folder: Path, incarnation: int) -> HostResult | None:
        """Return how the host ended, once it has said so."""

    def events(self, folder: Path, offset: int, limit_bytes: int) -> tuple[list[HostEvent], int]:
        """Return events from an offset on, and the offset after them."""

    def events_end(self, folder: Path) -> int:
        """Return the offset at which the next host will write its first event."""

    def running_seconds(self, folder: Path, incarnation: int) -> float | None:
        """Return how long the living host of an incarnation has run, by a clock that nobody sets; None: not known."""

    def ran_seconds(self, folder: Path, incarnation: int) -> float:
        """Return how long the host of an incarnation had run, by its own last note: for one that is dead."""

    def printed(self, folder: Path, limit_bytes: int) -> str:
        """Return the end of what the host printed."""

    def memory_bytes(self, process: ProcessId, limit: int) -> int:
        """Return the memory of the host's whole session; precise only above ``limit``."""

    def ask_cancel(self, process: ProcessId) -> None:
        """TERM to the whole session."""

    def ask_pause(self, process: ProcessId) -> None:
        """USR1 to the host."""

    def kill(self, process: ProcessId) -> bool:
        """KILL to the whole session, until all are gone; False if some will not die."""

    def remove(self, folder: Path) -> None:
        """Delete a job's folder. Does nothing if it is gone."""

    def folders(self) -> dict[str, Path]:
        """Return all jobs' folders of this node by job id."""

    def occupant(self, folder: Path) -> ProcessId | None:
        """Return a living host of any incarnation, also one that has not said who it is."""
