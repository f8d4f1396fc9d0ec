"""Shows the client's operations in the reference as whoever calls them sees them (an extension of griffe; mkdocs.yml names it).

What is marked ``@operation`` is written as the method that returns the ``Call``; who calls it gets the call's answer.
"""

from typing import Any

import griffe

_MARK = "burnish.client.faces.operation"


class Operations(griffe.Extension):
    """Takes the mark away, and turns ``Call[Answer]`` into ``Answer``."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called for each function once it is loaded."""
        if [mark.callable_path for mark in func.decorators] == [_MARK]:
            assert isinstance(func.returns, griffe.ExprSubscript), f"{func.path} returns no Call[...]"
            func.decorators = []
            func.returns = func.returns.slice
