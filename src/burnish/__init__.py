"""Burnish: take a language model through its whole life on your own machines."""

import importlib
from typing import TYPE_CHECKING, Any

from burnish.core.version import __version__

if TYPE_CHECKING:
    from burnish.client import AsyncClient, Client


__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "Client"}:  # on first use: a server and a host process need no client
        return getattr(importlib.import_module("burnish.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
