"""``burnish serve`` as it is, but its engine of GGUF models is the fake one: chats cost almost nothing.

Fine-tuning offers the kind ``count`` besides: a host's real work that takes as long as it is told. With
``BURNISH_TEST_PASSED`` (a folder) the process writes down which request it sent to which process and replica.

python -m tests.support.fake_serve
"""

import os
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

from burnish.components.fine_tuning import kinds
from burnish.components.model_serving.engines import ENGINES, Engine
from burnish.infra.http import Request, Response
from burnish.infra.http_client import HttpTransport
from tests.support.jobs_kinds import KINDS
from tests.support.passed import PassedOn
from tests.support.serving import FAKE

PASSED = "BURNISH_TEST_PASSED"


def main() -> None:
    """Serve."""
    cast(dict[str, Engine], ENGINES)["llama_cpp"] = FAKE
    kinds.KINDS["count"] = KINDS["count"]
    if (folder := os.environ.get(PASSED)) is not None:
        _write_down(PassedOn(Path(folder) / f"passed-{os.getpid()}.jsonl"))
    from burnish.cli.main import main as burnish  # only now: it knows the engines from here on

    sys.argv = ["burnish", "serve"]
    burnish()


def _write_down(log: PassedOn) -> None:
    """Have each request written down as it is sent."""
    send = HttpTransport.send

    def noted(self: HttpTransport, request: Request) -> AbstractAsyncContextManager[Response]:
        body = request.body if isinstance(request.body, bytes) else b""
        head = " ".join((request.path, *request.headers.values())).encode()
        log.note(head + body, self.where)
        return send(self, request)

    setattr(HttpTransport, "send", noted)  # noqa: B010 - the method is replaced on purpose


if __name__ == "__main__":
    main()
