"""What expressions stand for has a bound: steps that name steps could double it without end."""

import tracemalloc
from typing import Any

import pytest

from burnish.platform.workflow.expressions import MAX_WRITTEN, ExpressionError, Room, resolve, size_of

SCOPE: dict[str, Any] = {"parameters": {"text": "x" * 10_000, "list": [["y" * 100] * 100] * 10}}


@pytest.mark.parametrize("name", ["text", "list"])
def test_a_text_that_names_a_text_often_is_refused_before_it_is_put_together(name: str) -> None:
    """Breaks with: 250 kB of definition that become gigabytes."""
    bomb = f"${{{{ parameters.{name} }}}}" * 10_000
    tracemalloc.start()
    try:
        with pytest.raises(ExpressionError, match="stand for more than"):
            resolve({"value": bomb}, SCOPE)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_fields_of_one_spec_share_the_room() -> None:
    with pytest.raises(ExpressionError, match="stand for more than"):
        resolve([{"a": "${{ parameters.text }}"}] * 500, SCOPE)
    assert len(resolve([{"a": "${{ parameters.text }}"}] * 100, SCOPE)) == 100
    with pytest.raises(ExpressionError, match="stand for more than"):
        resolve([{"a": "${{ parameters.text }}"}] * 100, SCOPE, Room(1000))


def test_what_is_measured_is_what_would_be_written() -> None:
    assert size_of(["abc", {"de": 1}, None, 2.5], 1000) == 1 + 4 + 1 + 2 + 1 + 1 + 1
    assert size_of("x" * MAX_WRITTEN, 10) > 10
    assert size_of([10**4000], 100) > 100
