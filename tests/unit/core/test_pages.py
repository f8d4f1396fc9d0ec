import pytest

from burnish.core.pages import Page


@pytest.mark.parametrize(("rows", "more"), [(0, False), (1, False), (3, False), (4, True)])
def test_the_row_too_many_tells_that_more_follow(rows: int, more: bool) -> None:
    page = Page[int].of(list(range(rows)), 3, str)
    assert page.data == list(range(min(rows, 3)))
    assert (page.has_more, page.next) == (more, "2" if more else None)


def test_map_keeps_the_cursor() -> None:
    page = Page[int].of([1, 2], 1, str).map(lambda number: f"<{number}>")
    assert page.model_dump() == {"data": ["<1>"], "has_more": True, "next": "1"}
