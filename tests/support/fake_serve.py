"""``burnish serve`` as it is, but its engine of GGUF models is the fake one: chats cost almost nothing.

python -m tests.support.fake_serve
"""

import sys
from typing import cast

from burnish.components.model_serving.engines import ENGINES, Engine
from tests.support.serving import FAKE


def main() -> None:
    """Serve."""
    cast(dict[str, Engine], ENGINES)["llama_cpp"] = FAKE
    from burnish.cli.main import main as burnish  # only now: it knows the engines from here on

    sys.argv = ["burnish", "serve"]
    burnish()


if __name__ == "__main__":
    main()
