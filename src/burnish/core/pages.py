"""Cursor pagination: ask with ``after`` and ``limit``, be answered with ``data``, ``has_more`` and ``next``."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_LIMIT = 50
MAX_LIMIT = 500

Item = TypeVar("Item")
Other = TypeVar("Other")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(frozen=True)

    data: list[Item]
    has_more: bool = Field(default=False, description="Whether another page follows")
    next: str | None = Field(default=None, description="Send it as `after` to get the next page")

    @classmethod
    def of(cls, rows: Sequence[Item], limit: int, cursor: Callable[[Item], str]) -> "Page[Item]":
        """Make a page from up to ``limit + 1`` rows: the row too many tells that more follow.

        Args:
            rows: what a query with ``LIMIT limit + 1`` returned.
            limit: how many the caller asked for.
            cursor: returns the cursor that continues behind a row.
        """
        kept = list(rows[:limit])
        more = len(rows) > limit
        return cls(data=kept, has_more=more, next=cursor(kept[-1]) if more and kept else None)

    def map(self, change: Callable[[Item], Other]) -> "Page[Other]":
        """Return the page with each item changed."""
        return Page(data=[change(item) for item in self.data], has_more=self.has_more, next=self.next)
