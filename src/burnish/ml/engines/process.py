"""What the engine programs share: reading their configuration, saying why they cannot start, and dying cleanly."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from burnish.core.errors import BadModel, BurnishError
from burnish.core.specs.model import MODEL_CARD_FILE, ModelCard
from burnish.core.specs.serving import EngineConfig

WITH_PARENT = "--with-parent"
"""Second argument of an engine that must not outlive the process that started it (evaluation; not replicas)."""

_PR_SET_PDEATHSIG = 1
MAX_SOCKET_PATH = 100


def run_engine(serve: Callable[[EngineConfig], None]) -> None:
    """Run an engine program: ``argv`` is the configuration's path, perhaps followed by :data:`WITH_PARENT`.

    Exits with 1 and one last line ``cannot serve: ...`` on stderr when the configuration or the model is bad.
    """
    if len(sys.argv) < 2:
        print("usage: python -m burnish.ml.engines.<engine> CONFIG.json [--with-parent]", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    if WITH_PARENT in sys.argv[2:]:
        die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = EngineConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
        prepare_socket(config.socket)
        serve(config)
    except (BurnishError, ValidationError, OSError) as error:
        hint = getattr(error, "hint", None)
        reason = " ".join(str(error).split()) + (f" ({hint})" if hint else "")
        print(f"cannot serve: {reason}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(1) from None


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies, however it dies. Linux only."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        raise SystemExit(1)


def prepare_socket(path: str) -> None:
    """Remove what an earlier process left at the socket's path.

    Raises:
        BadModel: the path is too long for a unix socket.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise BadModel(
            f"the socket path has more than {MAX_SOCKET_PATH} bytes", where=path, hint="use a shorter folder"
        )
    Path(path).unlink(missing_ok=True)


def positions(config: EngineConfig) -> int:
    """Return the context of a request: what was asked for, at most what the model was made for (by its card)."""
    try:
        card = ModelCard.model_validate_json((Path(config.model_dir) / MODEL_CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return config.context_length
    return min(config.context_length, card.context_length or config.context_length)
