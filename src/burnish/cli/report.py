"""The report at the end of the demo, built from what the status of an execution tells."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from burnish.cli.output import command, console, seconds, size
from burnish.cli.summary import share
from burnish.client import Client, ExecutionView, StepView
from burnish.core.errors import BurnishError
from burnish.core.prompting import default_instruction, to_example

VERDICTS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
ORDER = ("base", "tuned", "compressed", "production")
METRIC_NAMES = {"accuracy": "accuracy, answer restricted to the labels"}


@dataclass
class Findings:
    """The results of an execution, by what they are."""

    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: list[dict[str, Any]] = field(default_factory=list)
    gate: dict[str, Any] | None = None
    imported: dict[str, Any] | None = None
    trained: dict[str, Any] | None = None
    compressed: dict[str, Any] | None = None
    registered: dict[str, Any] | None = None
    deployed: dict[str, Any] | None = None
    split: dict[str, Any] | None = None


KINDS = {
    "gate": "gate", "import_model": "imported", "sft": "trained", "split": "split", "deploy": "deployed",
    "register": "registered",
}  # fmt: skip


def findings(view: ExecutionView) -> Findings:
    """Sort the steps' results by their kind, so that a definition with other step names is reported too."""
    found = Findings()
    for step in view.steps:
        for result in step.result if isinstance(step.result, list) else [step.result]:
            if isinstance(result, dict):
                _take(found, step, result)
    return found


def _take(found: Findings, step: StepView, result: dict[str, Any]) -> None:
    if step.kind == "evaluate":
        found.evaluations[result.get("label") or step.name] = result
    elif step.kind == "compress":
        smaller = found.compressed is None or result["size_bytes"] < found.compressed["size_bytes"]
        found.compressed = result if smaller else found.compressed
    elif step.kind in KINDS:
        setattr(found, KINDS[step.kind], result)
    if step.kind != "register":  # which carries what others found
        found.differences += [one for one in _walk(result) if {"baseline", "candidate", "p_value"} <= one.keys()]


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def print_report(client: Client, view: ExecutionView, deployment: str, home: Path) -> None:
    """Print what an execution came to, for a person; ``home`` is where its artifacts are."""
    found = findings(view)
    _say(f"\n[bold]Report on {view.workflow_id}[/]: {_outcome(view)}")
    _failure(view)
    if found.split is not None and found.imported is not None:
        _say(
            f"Trained on {found.split['train_rows']} rows and judged on {found.split['test_rows']} that nothing was chosen by."
        )
        _shipped(found.imported)
    _quality(found)
    _differences(found)
    _cost(found)
    _gate(found)
    _artifacts(view, found, home)
    if found.deployed is not None:
        _use_it(client, view, found, str(found.deployed.get("deployment") or deployment))


def _outcome(view: ExecutionView) -> str:
    colour = {"succeeded": "green", "rejected": "yellow"}.get(view.status, "red")
    words = {
        "succeeded": "the model passed the gate and is deployed",
        "rejected": "the gate did not let it pass; what was in production is untouched",
    }.get(view.status, f"it {view.status}; nothing was deployed")
    spent = ""
    if view.started_at and view.completed_at:
        spent = f" ({seconds((view.completed_at - view.started_at).total_seconds())})"
    return f"[{colour}]{view.status}[/]{spent}: {words}"


def _failure(view: ExecutionView) -> None:
    for step in view.steps:
        if step.error is not None and step.state == "failed":
            _say(f"  [red]{step.name}[/]: {escape(step.error.message)}")
            if step.error.hint:
                _say(f"  next: {escape(step.error.hint)}")
    if view.status == "failed":
        _say(
            f"  [dim]{command(f'logs {view.workflow_id}')}; after mending: {command(f'retry {view.workflow_id} --follow')}[/]"
        )


def _shipped(imported: dict[str, Any]) -> None:
    if shipped := imported.get("shipped_as"):
        _say(
            f"The base model comes as {shipped}: it has lost quality before we touched it. Compression is therefore measured "
            "against the tuned model in bf16."
        )


def _quality(found: Findings) -> None:
    rows = [(label, found.evaluations[label]) for label in _labels(found)]
    if not rows:
        return
    headline = rows[0][1]["headline"]
    others = [name for name in rows[0][1]["metrics"] if name != headline]
    table = _table("Quality on held-out rows, each model as it is served, with 95 % intervals")
    table.add_column("model")
    table.add_column(f"{METRIC_NAMES.get(headline, headline)} (headline)")
    for name in others:
        table.add_column(name.replace("_", " "))
    table.add_column("rows", justify="right")
    for label, result in rows:
        metrics = result["metrics"]
        n = metrics[headline]["n"]
        cells = [_cell(metrics.get(name), n) for name in (headline, *others)]
        skipped = f" ({result['skipped']} could not be scored)" if result.get("skipped") else ""
        table.add_row(label, *cells, f"{n}{skipped}")
    console().print(table)


def _cell(metric: dict[str, Any] | None, n: int) -> Text:
    if metric is None:
        return Text("-")
    return Text(share(metric) + (f" of {metric['n']}" if metric["n"] != n else ""))


def _differences(found: Findings) -> None:
    if not found.differences:
        return
    headline = next((one["headline"] for one in found.evaluations.values()), "")
    what = "log-likelihood a token (more is better)" if headline == "perplexity" else "the headline"
    table = _table(f"Paired differences of {what}: the same rows, answered by both")
    for column in ("compared", "difference", "95 % interval", "p", "right alone", ""):
        table.add_column(column)
    seen = set()
    for one in found.differences:
        if (pair := (one["candidate"], one["baseline"])) in seen:
            continue
        seen.add(pair)
        excluded = one["low"] > 0 or one["high"] < 0
        meaning = ("better" if one["difference"] > 0 else "worse") if excluded else "no difference can be told"
        table.add_row(
            f"{pair[0]} - {pair[1]}", f"{one['difference']:+.3f}", Text(f"[{one['low']:+.3f}, {one['high']:+.3f}]"),
            f"{one['p_value']:.2g}", f"{one['only_candidate']} / {one['only_baseline']}", meaning,
        )  # fmt: skip
    console().print(table)


def _cost(found: Findings) -> None:
    labels = _labels(found)
    if not labels:
        return
    table = _table("Cost of each")
    for column in ("model", "engine", "type", "file", "memory (PSS)", "tokens/s", "median latency", "load"):
        table.add_column(column)
    for label in labels:
        served = found.evaluations[label]["served"]
        table.add_row(
            label, served["engine"], served["dtype"], size(served["size_bytes"]), size(served["memory_bytes"]),
            f"{served['tokens_per_second']:.0f}", f"{served['latency_p50_seconds'] * 1000:.0f} ms", seconds(served["load_seconds"]),
        )  # fmt: skip
    console().print(table)
    if found.compressed is not None:
        one = found.compressed
        saved = 1 - one["size_bytes"] / one["reference_bytes"]
        _say(
            f"Compressed to {one['dtype']}: {saved:.0%} smaller than bf16, {one['bits_per_weight']:.2f} bits a weight, "
            f"in {seconds(one['seconds'])}."
        )
        if one.get("fallback_tensors"):
            kinds = ", ".join(f"{count} {name}" for name, count in one["fallback_tensors"].items())
            _say(f"  [dim]tensors of another type than asked for, because their sizes do not divide: {kinds}[/]")


def _gate(found: Findings) -> None:
    if found.gate is None:
        return
    verdict = str(found.gate["verdict"])
    table = _table("The gate")
    for column in ("rule", "verdict", "numbers"):
        table.add_column(column)
    for rule in found.gate["rules"]:
        numbers = rule["sentence"].removeprefix(f"{rule['rule']}: ")
        table.add_row(rule["rule"], Text(rule["verdict"], VERDICTS[rule["verdict"]]), Text(numbers))
    console().print(table)
    _say(f"Verdict: [{VERDICTS[verdict]}]{verdict}[/]")


def _artifacts(view: ExecutionView, found: Findings, home: Path) -> None:
    table = _table("Artifacts, immutable and known by their content")
    for column in ("step", "kind", "digest", "size"):
        table.add_column(column)
    seen = set()
    for step in view.steps:
        for artifact in step.artifacts:
            if artifact.digest not in seen and artifact.kind != "checkpoint":
                seen.add(artifact.digest)
                table.add_row(step.name, artifact.kind, artifact.digest[:19] + "…", size(artifact.size_bytes))
    if seen:
        console().print(table)
    if found.compressed is not None and (folder := _folder(home, found.compressed["model"]["digest"])).is_dir():
        _say(f"What is deployed is in {escape(str(folder))}")
    if found.registered is not None:
        name = found.registered["reference"]
        _say(f"Registered as [bold]{name}[/], with its lineage: [cyan]{command(f'model show {name}')}[/]")


def _folder(home: Path, digest: str) -> Path:
    """Return where an artifact of the store in the home has its files."""
    name = digest.removeprefix("sha256:")
    return home / "artifacts" / "objects" / name[:2] / name / "files"


def _use_it(client: Client, view: ExecutionView, found: Findings, deployment: str) -> None:
    result = found.evaluations.get("compressed") or next(iter(found.evaluations.values()), None)
    _say("\n[bold]Talk to it[/]")
    example = _example(client, view, result)
    messages, request = example["messages"], example["request"]
    text = messages[-1]["content"]
    _typed(command(f"chat {deployment} {shlex.quote(text)} --max-tokens 8"))
    body = json.dumps({"model": deployment, "messages": messages, **request}, ensure_ascii=False)
    _say("\nThe request that reproduces the headline restricts the answer to the labels:")
    _typed(f"curl -s {client.url}/v1/chat/completions -H 'content-type: application/json' \\")
    _typed(f"  -d {shlex.quote(body)}")
    _say("\nThe same with the official `openai` package:")
    lines = [
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{client.url}/v1", api_key="unused")',
        "answer = client.chat.completions.create(",
        f"    model={deployment!r},",
        f"    messages={messages!r},",
        *(f"    {name}={value!r}," for name, value in request.items()),
        ")",
        "print(answer.choices[0].message.content)",
    ]
    for line in lines:
        _typed(line)
    _say(
        f"\nIn another terminal: [cyan]{command('list')}[/], [cyan]{command(f'show {view.workflow_id}')}[/], "
        f"[cyan]{command('model list')}[/]. In a browser: {client.url}/api"
    )


def _example(client: Client, view: ExecutionView, result: dict[str, Any] | None) -> dict[str, Any]:
    """Return messages as the model was asked in the evaluation, and the request's other fields."""
    fallback = {
        "messages": [{"role": "user", "content": "A warm, funny and moving film."}],
        "request": {"temperature": 0},
    }
    given = view.parameters.get("test_dataset") or view.parameters.get("dataset")
    if result is None or not isinstance(given, dict):
        return fallback
    try:
        reference = f"{given['name']}@{given['version']}"
        row = client.datasets.preview(reference, limit=1)["rows"][0]
        labels = client.datasets.get(reference)["card"]["labels"]
        example = to_example(row, "classification", view.parameters.get("instruction") or default_instruction(labels))
    except (BurnishError, KeyError, IndexError):
        return fallback
    request = {key: value for key, value in result.get("request", {}).items() if key not in {"model", "messages"}}
    return {"messages": list(example["prompt"]), "request": request}


def _labels(found: Findings) -> list[str]:
    known = [label for label in ORDER if label in found.evaluations]
    return known + [label for label in found.evaluations if label not in ORDER]


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 2, 0, 0),
    )


def _say(text: str) -> None:
    console().print(text, soft_wrap=True)


def _typed(text: str) -> None:
    """Print what the reader can paste: never folded, never read as markup."""
    console().print(Text(f"  {text}", "cyan"), soft_wrap=True)
