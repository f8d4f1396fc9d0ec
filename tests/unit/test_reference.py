"""The reference of the Python client shows an operation as whoever calls it sees it."""

from pathlib import Path

import griffe

EXTENSION = Path(__file__).parents[2] / "tools" / "operations_in_reference.py"
CODE = '''
from burnish.client.calls import Call
from burnish.client.faces import operation

class Things:
    @operation
    def get(self, name: str) -> Call[dict[str, int]]:
        """Return a thing."""

    @staticmethod
    def other() -> Call[int]:
        """Not an operation."""
'''


def test_an_operation_returns_its_answer_in_the_reference() -> None:
    extensions = griffe.load_extensions(str(EXTENSION))
    with griffe.temporary_visited_package("shown", {"__init__.py": CODE}, extensions=extensions) as shown:
        things = shown["Things"].members
    assert (str(things["get"].returns), things["get"].decorators) == ("dict[str, int]", [])
    assert str(things["other"].returns) == "Call[int]"
