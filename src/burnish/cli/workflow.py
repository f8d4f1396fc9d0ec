"""The commands on executions: submit, list, show, logs, cancel, pause, resume, retry, fork."""

from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.options import After, Follow, Json, Limit, Set, SetFile, Url


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(submit)
    app.command(name="list")(list_)
    for command in (show, logs, cancel, pause, resume, retry, fork, approve, definitions):
        app.command()(command)


def _executions(incomplete: str) -> list[tuple[str, str]]:
    """Offer the latest executions to the shell; a server that does not answer offers none."""
    from burnish.client import Client
    from burnish.core.errors import BurnishError

    try:
        with Client() as client:
            page = client.workflows.list(limit=20)
    except BurnishError:
        return []
    return [(e.workflow_id, f"{e.workflow_type} {e.status}") for e in page.data if e.workflow_id.startswith(incomplete)]


def _definitions(incomplete: str) -> list[str]:
    """Offer the names of definitions to the shell."""
    from burnish.client import Client
    from burnish.core.errors import BurnishError

    try:
        with Client() as client:
            return [d.name for d in client.workflows.definitions() if d.name.startswith(incomplete)]
    except BurnishError:
        return []


Execution = Annotated[str, typer.Argument(metavar="WORKFLOW_ID", help="`wf_...`", autocompletion=_executions)]


def submit(
    workflow: Annotated[
        str, typer.Argument(help="A definition's name, or a YAML or JSON file.", autocompletion=_definitions)
    ],
    pairs: Set = None,
    set_file: SetFile = None,
    follow: Follow = False,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="The same key again is the same execution.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check it.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a workflow. Once this answers, it is stored and will be carried out."""
    from burnish.cli.output import command as typed
    from burnish.cli.output import console, print_json
    from burnish.cli.parameters import read_definition, read_parameters
    from burnish.client import Client

    parameters = read_parameters(set_file, pairs)
    chosen: Any = read_definition(Path(workflow)) if workflow.endswith((".yaml", ".yml", ".json")) else workflow
    with Client(url) as client:
        if dry_run:
            checked = client.workflows.validate(chosen, parameters)
            return _say_checked(checked, as_json)
        accepted = client.workflows.submit(chosen, parameters, idempotency_key=key)
        if follow:
            return _follow(client, accepted.workflow_id, as_json)
    if as_json:
        return print_json(accepted)
    console().print(f"[green]✓[/] {accepted.workflow_id} is {accepted.status}")
    return console().print(f"  watch it: {typed(f'show {accepted.workflow_id} --follow')}", style="dim")


def list_(
    status: Annotated[str | None, typer.Option("--status", help="Only executions in this state.")] = None,
    limit: Limit = 20, after: After = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List executions, newest first."""
    from burnish.cli.output import ago, print_json, print_table, state_text
    from burnish.client import Client

    with Client(url) as client:
        page = client.workflows.list(status=status, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (e.workflow_id, e.workflow_type, state_text(e.status), f"{e.steps_done}/{e.steps_total}", ago(e.created_at))
        for e in page.data
    ]
    return print_table(
        ("execution", "workflow", "status", "steps", "submitted"),
        rows,
        empty="no executions yet: burnish submit train-optimize-deploy ...",
    )


def show(workflow_id: Execution, follow: Follow = False, url: Url = None, as_json: Json = False) -> None:
    """Show an execution: each step's state, attempts, progress, artifacts, and what failed."""
    from burnish.cli.follow import render
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        if follow:
            return _follow(client, workflow_id, as_json)
        view = client.workflows.get(workflow_id)
    return print_json(view) if as_json else console().print(render(view, details=True))


def logs(
    workflow_id: Annotated[str, typer.Argument(metavar="ID", help="`wf_...` or `job_...`", autocompletion=_executions)],
    step: Annotated[str | None, typer.Option("--step", help="Only this step.")] = None,
    follow: Follow = False, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Print the log lines of an execution's jobs, or of one job."""
    from burnish.cli.logs import print_logs
    from burnish.client import Client

    with Client(url) as client:
        print_logs(client, workflow_id, step=step, follow=follow, as_json=as_json)


def cancel(workflow_id: Execution, url: Url = None, as_json: Json = False) -> None:
    """Cancel an execution; running jobs are ended."""
    _steer("cancel", workflow_id, url, as_json)


def pause(workflow_id: Execution, url: Url = None, as_json: Json = False) -> None:
    """Start no further step; jobs that can are checkpointed and paused."""
    _steer("pause", workflow_id, url, as_json)


def resume(workflow_id: Execution, url: Url = None, as_json: Json = False) -> None:
    """Go on with a paused execution."""
    _steer("resume", workflow_id, url, as_json)


def retry(workflow_id: Execution, follow: Follow = False, url: Url = None, as_json: Json = False) -> None:
    """Go on from the step that failed, keeping what succeeded."""
    _steer("retry", workflow_id, url, as_json, follow=follow)


def fork(
    workflow_id: Execution,
    step: Annotated[
        str | None, typer.Option("--from", help="Do this step and all that needs it anew in any case.")
    ] = None,
    pairs: Set = None,
    set_file: SetFile = None,
    follow: Follow = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Start a new execution with changed parameters; what they do not touch keeps its results."""
    from burnish.cli.output import console, print_json
    from burnish.cli.parameters import read_parameters
    from burnish.client import Client

    with Client(url) as client:
        accepted = client.workflows.fork(workflow_id, step, read_parameters(set_file, pairs))
        if follow:
            return _follow(client, accepted.workflow_id, as_json)
    return (
        print_json(accepted) if as_json else console().print(f"[green]✓[/] {accepted.workflow_id} is {accepted.status}")
    )


def approve(
    workflow_id: Execution,
    step: Annotated[str, typer.Argument(help="The step that waits for a person.")],
    refuse: Annotated[bool, typer.Option("--no", help="Refuse: the execution ends as rejected.")] = False,
    comment: Annotated[str, typer.Option("--comment", help="Kept with the answer.")] = "",
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Answer a step that waits for a person's yes."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        answer = client.workflows.approve(workflow_id, step, approved=not refuse, comment=comment)
    return print_json(answer) if as_json else console().print(f"[green]✓[/] {workflow_id} is {answer.status}")


def definitions(
    name: Annotated[str | None, typer.Argument(help="Show the parameters of this one.", autocompletion=_definitions)] = None,
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List the workflows that can be submitted by name, or the parameters of one."""
    from burnish.cli.output import print_json, print_table
    from burnish.client import Client
    from burnish.core.errors import NotFound

    with Client(url) as client:
        found = {one.name: one for one in client.workflows.definitions()}
    if name is None:
        rows = [(one.name, one.description.strip()) for one in found.values()]
        return (
            print_json({"data": found.values()})
            if as_json
            else print_table(("workflow", "what it does"), rows, empty="none")
        )
    if name not in found:
        raise NotFound(f"there is no workflow {name!r}", hint=f"there is: {', '.join(sorted(found))}")
    if as_json:
        return print_json(found[name])
    parameters = [
        (p["name"], p["type"], "required" if p["required"] else p["default"], p["description"])
        for p in found[name].parameters
    ]
    return print_table(("parameter", "type", "default", ""), parameters, empty="it has no parameters")


def _say_checked(checked: Any, as_json: bool) -> None:
    from burnish.cli.output import console, print_json, print_table
    from burnish.core.errors import InvalidRequest

    if as_json:
        print_json(checked)
    if not checked.valid:
        raise InvalidRequest("it would not be accepted", problems=checked.problems)
    if not as_json:
        console().print("[green]✓[/] it would be accepted")
        rows = [
            (step["name"], f"{step['component']}/{step['kind']}", ", ".join(step["needs"])) for step in checked.steps
        ]
        print_table(("step", "kind", "needs"), rows, empty="no steps")


def _steer(action: str, workflow_id: str, url: str | None, as_json: bool, *, follow: bool = False) -> None:
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        answer = getattr(client.workflows, action)(workflow_id)
        if follow:
            return _follow(client, workflow_id, as_json)
    if as_json:
        return print_json(answer)
    return console().print(f"[green]✓[/] {action} accepted; {workflow_id} is {answer.status} at this moment")


def _follow(client: Any, workflow_id: str, as_json: bool) -> None:
    from burnish.cli.follow import ending, follow

    raise typer.Exit(ending(follow(client, workflow_id, as_json=as_json)))
