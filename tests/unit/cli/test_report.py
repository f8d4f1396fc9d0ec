"""The demo's report, over results made from the very models that the steps answer with."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.report import print_report
from burnish.cli.summary import step_line
from burnish.client import Client, ExecutionView, StepView
from burnish.core.specs import base, compression, data, evaluation, fine_tuning, serving
from burnish.platform.workflow.gate import RuleVerdict, Verdict
from burnish.platform.workflow.registry_kinds import CurrentResult, PromoteResult, RegisterResult
from tests.support.scripted_server import Answer, Asked
from tests.support.scripted_server import serving as serving_script

DIGEST = "sha256:" + "ab" * 32


def ref(kind: base.ArtifactKind = "gguf") -> base.ArtifactRef:
    return base.ArtifactRef(digest=DIGEST, kind=kind, size_bytes=145_000_000)


def evaluated(label: str, accuracy: float, dtype: str) -> evaluation.EvaluationResult:
    estimate = base.Estimate(value=accuracy, low=accuracy - 0.04, high=accuracy + 0.04, n=400)
    return evaluation.EvaluationResult(
        task="classification", label=label, headline="accuracy", dataset=ref("dataset"), examples=ref("report"),
        metrics={"accuracy": estimate, "free_exact_match": base.Estimate(value=0.1, low=0.0, high=0.2, n=100)},
        request={"logit_bias": {"17": 100}, "max_tokens": 1, "temperature": 0},
        served=evaluation.ServedAs(
            engine="llama_cpp", model=ref(), dtype=dtype, size_bytes=145_000_000, memory_bytes=246_000_000,
            tokens_per_second=92.4, latency_p50_seconds=0.1, latency_p95_seconds=0.2, load_seconds=0.7,
        ),
    )  # fmt: skip


def verdict(judgement: Any) -> Verdict:
    difference = evaluation.PairedDifference(
        baseline="base", candidate="compressed", difference=0.41, low=0.32, high=0.5, p_value=5.8e-15,
        method="mcnemar_exact_newcombe", n=400, only_candidate=73, only_baseline=7,
    )  # fmt: skip
    rule = RuleVerdict(
        rule="better than base", verdict=judgement, sentence="better than base: +0.41, above 0", comparison=difference
    )
    return Verdict(verdict=judgement, candidate="compressed", sentence=f"{judgement}: one rule", rules=(rule,))


def results(judgement: str) -> dict[tuple[str, str], base.Spec]:
    """What each step found, by name and kind."""
    import_result = fine_tuning.ImportModelResult(
        model=ref("model"), name="Smol", architecture="LlamaForCausalLM", parameters=135_000_000, shipped_as="Q4_1"
    )
    split_result = data.SplitResult(
        train=ref("dataset"), validation=None, test=ref("dataset"), train_rows=450, validation_rows=20, test_rows=400,
        exact_leaks=1, near_leaks=2, dropped=3, format="classification",
    )  # fmt: skip
    train_result = fine_tuning.FineTuningResult(
        adapter=ref("adapter"), base=ref("model"), steps=57, epochs=1, examples=450, dropped=0, supervised_tokens=900,
        first_loss=2.0, final_loss=0.24, data_order_hash="x", examples_per_second=9.4, peak_memory_bytes=1_300_000_000,
    )  # fmt: skip
    compress_result = compression.CompressionResult(
        model=ref(), method="gguf", params={}, dtype="q8_0", reference_bytes=269_000_000, size_bytes=145_000_000,
        bits_per_weight=8.61, seconds=11, fallback_tensors={"q5_0": 180},
    )  # fmt: skip
    found: dict[tuple[str, str], base.Spec] = {
        ("import", "import_model"): import_result,
        ("split", "split"): split_result,
        ("current", "current"): CurrentResult(found=False),
        ("train", "sft"): train_result,
        ("compress", "compress"): compress_result,
        ("evaluate_base", "evaluate"): evaluated("base", 0.49, "bf16"),
        ("evaluate_compressed", "evaluate"): evaluated("compressed", 0.9, "q8_0"),
        ("gate", "gate"): verdict(judgement),
    }
    if judgement == "pass":
        found["register", "register"] = RegisterResult(
            name="production", version=1, reference="production@1", created=True, artifact=ref()
        )
        found["deploy", "deploy"] = serving.DeployResult(
            deployment="production", revision=1, model=ref(), switched=True, ready_seconds=1.6
        )
        found["promote", "promote"] = PromoteResult(name="production", alias="production", version=1)
    return found


def execution(status: str, judgement: str = "pass") -> ExecutionView:
    steps = [
        {"name": name, "kind": kind, "state": "succeeded", "result": result.model_dump(mode="json"),
         "artifacts": [ref().model_dump()]}
        for (name, kind), result in results(judgement).items()
    ]  # fmt: skip
    if status == "failed":
        error = {"code": "limit_exceeded", "message": "more memory than declared", "hint": "lower batch_size"}
        steps[3] = {"name": "train", "kind": "sft", "state": "failed", "error": error}
    return ExecutionView.model_validate({
        "workflow_id": "wf_1", "workflow_type": "train-optimize-deploy", "status": status, "steps": steps,
        "parameters": {"test_dataset": {"name": "reviews", "version": 2}},
        "started_at": datetime(2026, 1, 1, tzinfo=UTC), "completed_at": datetime(2026, 1, 1, 0, 3, 5, tzinfo=UTC),
    })  # fmt: skip


def answers(asked: Asked) -> Answer:
    if "preview" in asked.path:
        return Answer(body={"rows": [{"text": "A warm film.", "label": "positive"}]})
    return Answer(body={"card": {"labels": {"positive": 1, "negative": 1}}})


def report(view: ExecutionView, capsys: pytest.CaptureFixture[str], home: Path) -> str:
    with serving_script(answers) as server, Client(server.url) as client:
        print_report(client, view, "production", home)
    return capsys.readouterr().out


def test_a_success_tells_quality_cost_verdict_and_how_to_use_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = tmp_path / "artifacts" / "objects" / "ab" / ("ab" * 32) / "files"
    files.mkdir(parents=True)
    said = report(execution("succeeded"), capsys, tmp_path)
    for part in (
        "3 min 05 s", "passed the gate", "450 rows and judged on 400", "comes as Q4_1", "0.900 [0.860, 0.940]",
        "0.100 [0.000, 0.200] of 100", "compressed - base", "+0.410", "[+0.320, +0.500]", "5.8e-15", "73 / 7", "246 MB", "92",
        "46% smaller", "180 q5_0", "better than base", "Verdict: pass", "production@1", str(files),
    ):  # fmt: skip
        assert part in said, part
    assert '"logit_bias": {"17": 100}' in said
    assert "logit_bias={'17': 100}," in said
    assert "A warm film." in said
    assert "[/]" not in said
    assert "-H 'content-type: application/json' \\\n" in said
    assert "Answer with one of: negative, positive." in said


def test_a_rejection_says_that_production_is_untouched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = report(execution("rejected", "inconclusive"), capsys, tmp_path)
    assert "untouched" in said
    assert "Verdict: inconclusive" in said
    assert "Talk to it" not in said


def test_a_failure_says_what_and_what_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = report(execution("failed"), capsys, tmp_path)
    for part in (
        "nothing was deployed",
        "more memory than declared",
        "lower batch_size",
        "logs wf_1",
        "retry wf_1 --follow",
    ):
        assert part in said, part


LINES = {
    "import": "Smol, 135 M weights, shipped as Q4_1",
    "split": "450 train, 20 validation, 400 test rows, 3 leaks into the test set dropped",
    "current": "nothing is in production yet",
    "train": "loss 2.000 -> 0.240, 450 examples at 9.4/s, peak 1.3 GB",
    "compress": "q8_0: 269 MB -> 145 MB (8.61 bits a weight)",
    "evaluate_base": "accuracy 0.490 [0.450, 0.530], 92 tokens/s",
    "gate": "pass: one rule",
    "register": "production@1",
    "deploy": "production revision 1 serves, ready in 1.6 s",
    "promote": "production@production is version 1",
}


@pytest.mark.parametrize(("name", "line"), LINES.items())
def test_every_step_has_a_line_on_what_it_found(name: str, line: str) -> None:
    result = next(value for (step, _), value in results("pass").items() if step == name)
    step = {"name": name, "state": "succeeded", "result": result.model_dump(mode="json")}
    assert step_line(StepView.model_validate(step)) == line
    assert step_line(StepView.model_validate({**step, "reused": True})) == f"unchanged, re-used; {line}"
