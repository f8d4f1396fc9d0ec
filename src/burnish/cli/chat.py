"""``burnish chat``."""

import sys
from typing import Annotated

import typer

from burnish.cli.options import Json, Url


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    deployment: Annotated[str, typer.Argument(help="What to talk to; `production` after train-optimize-deploy.")],
    message: Annotated[str | None, typer.Argument(help="One message; without it a conversation begins.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most this many tokens an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0 always takes the likeliest.")] = 0,
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Talk to a deployed model."""
    from burnish.cli.output import print_json
    from burnish.client import Client

    messages = [{"role": "system", "content": system}] if system else []
    with Client(url) as client:
        while True:
            text = message if message is not None else _ask()
            if not text:
                return
            messages.append({"role": "user", "content": text})
            answer = ""
            for chunk in client.chat_stream(deployment, messages, max_tokens=max_tokens, temperature=temperature):
                answer += chunk.text
                if not as_json:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            if as_json:
                print_json({"model": deployment, "content": answer})
            else:
                sys.stdout.write("\n")
            messages.append({"role": "assistant", "content": answer})
            if message is not None:
                return


def _ask() -> str:
    """Return the next line of a conversation, empty at its end."""
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    return sys.stdin.readline().strip()
