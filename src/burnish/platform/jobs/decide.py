"""What a heavy job's reconciler does next. Pure: facts in, one step out; no clock, no processes.

The order matters: an existing host is attached to before a cancel or pause is looked at, and a result is believed
before a death (a host writes its result and then ends).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from burnish.core.states import JobState


class Step(StrEnum):
    """One thing to do."""

    PARK = "park"
    """Nothing, until something is asked of the job."""
    ATTACH = "attach"
    """Its host lives or lived: record which process it is."""
    START = "start"
    WAIT_FOR_HOST = "wait_for_host"
    """A host holds the folder but has not said who it is."""
    REPLACE = "replace"
    """A host of an earlier incarnation holds the folder: kill it."""
    CANCEL_UNSTARTED = "cancel_unstarted"
    FINISH = "finish"
    LOST = "lost"
    CANCELLED = "cancelled"
    """The host was killed because of a cancel and left no result."""
    WATCH = "watch"
    TERMINATE = "terminate"
    KILL = "kill"
    ASK_PAUSE = "ask_pause"


@dataclass(frozen=True)
class Facts:
    """What the row, the folder and the machine say."""

    state: JobState
    host: Literal["none", "alive", "dead"] = "none"
    """Of this incarnation."""
    locked: bool = False
    """Somebody holds the job's folder."""
    older_host_alive: bool = False
    result: bool = False
    cancel_requested: bool = False
    pause_requested: bool = False
    told_to_cancel: bool = False
    grace_over: bool = False
    told_to_pause: bool = False
    over_limit: bool = False
    """The server's own measure says that a limit is passed, and the host did not end by itself."""


def decide(facts: Facts) -> Step:
    """Return the next step."""
    if facts.state == JobState.STARTING:
        return _starting(facts)
    if facts.state == JobState.RUNNING:
        return _running(facts)
    return Step.PARK


def _starting(facts: Facts) -> Step:
    if facts.host != "none" or facts.result:
        return Step.ATTACH
    if facts.older_host_alive:
        return Step.REPLACE
    if facts.locked:
        return Step.WAIT_FOR_HOST
    if facts.cancel_requested:
        return Step.CANCEL_UNSTARTED
    return Step.START


def _running(facts: Facts) -> Step:
    if facts.result:
        return Step.FINISH
    if facts.host != "alive":
        return Step.CANCELLED if facts.cancel_requested else Step.LOST
    if facts.over_limit or (facts.told_to_cancel and facts.grace_over):
        return Step.KILL
    if facts.cancel_requested:
        return Step.WATCH if facts.told_to_cancel else Step.TERMINATE
    if facts.pause_requested and not facts.told_to_pause:
        return Step.ASK_PAUSE
    return Step.WATCH
