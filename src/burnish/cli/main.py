"""The ``burnish`` command: its commands and how it ends."""

import sys
from collections.abc import Sequence

import typer

from burnish.cli import (
    audit,
    chat,
    completion,
    component,
    components,
    config,
    dataset,
    demo,
    deployment,
    doctor,
    job,
    key,
    kinds,
    login,
    model,
    project,
    secret,
    serve,
    up,
    user,
    workflow,
)
from burnish.cli.options import ADDRESSED, Exit

app = typer.Typer(
    name="burnish",
    help="Take a language model through its whole life on your own machines.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 no server reachable, 4 workflow failed, 5 gate rejected.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (serve, up, doctor, demo, login, workflow, chat, components, kinds, completion):
    module.register(app)
app.add_typer(dataset.app, name="dataset")
app.add_typer(model.app, name="model")
app.add_typer(deployment.app, name="deployment")
app.add_typer(job.app, name="job")
app.add_typer(component.app, name="component")
app.add_typer(key.app, name="key")
app.add_typer(user.app, name="user")
app.add_typer(user.service_account_app, name="service-account")
app.add_typer(project.app, name="project")
app.add_typer(project.role_app, name="role")
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
app.add_typer(secret.app, name="secret")


def _version(wanted: bool) -> None:
    if wanted:
        from burnish.core.version import __version__

        print(f"burnish {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Take a language model through its whole life on your own machines."""
    ADDRESSED.clear()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="burnish")
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader of our stdout (head, less) has gone
        sys.stderr.close()
        sys.exit(Exit.FAILED)
    except Exception as error:
        from burnish.core.errors import BurnishError

        if not isinstance(error, BurnishError):
            raise
        from burnish.cli.output import exit_status, print_error

        print_error(error, as_json="--json" in given)
        sys.exit(exit_status(error))
