"""``burnish job``: list, show."""

from typing import Annotated

import typer

from burnish.cli.options import After, Json, Limit, Url

app = typer.Typer(help="Heavy work: one job is one kind with a typed spec and result.", no_args_is_help=True)


@app.command(name="list")
def list_(
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List jobs, newest first."""
    from burnish.cli.output import ago, print_json, print_table, state_text
    from burnish.client import Client

    with Client(url) as client:
        page = client.jobs.list(state=state, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [(j.job_id, j.kind, state_text(j.state), j.pending_reason or j.pid, ago(j.created_at)) for j in page.data]
    return print_table(("job", "kind", "state", "pid or why it waits", "made"), rows, empty="no jobs")


@app.command()
def show(job_id: Annotated[str, typer.Argument(help="`job_...`")], url: Url = None, as_json: Json = False) -> None:
    """Show a job."""
    from burnish.cli.output import print_json, print_record
    from burnish.client import Client

    with Client(url) as client:
        found = client.jobs.get(job_id)
    return print_json(found) if as_json else print_record(found)
