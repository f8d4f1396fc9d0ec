"""``burnish completion``: prints the script that a shell loads."""

from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    """Shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(completion)


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to complete in.")]) -> None:
    """Print a completion script.

    bash: add `eval "$(burnish completion bash)"` to ~/.bashrc. zsh: `eval "$(burnish completion zsh)"` in ~/.zshrc.
    """
    from typer._completion_shared import get_completion_script

    print(get_completion_script(prog_name="burnish", complete_var="_BURNISH_COMPLETE", shell=shell.value))
