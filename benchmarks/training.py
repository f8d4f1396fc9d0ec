"""Training examples/s and peak memory: Burnish's `sft` against TRL's `SFTTrainer`, same model, data, LoRA and batch.

    python benchmarks/training.py --model FOLDER [--trl-python VENV/bin/python] [--rounds 3] [--json out.json]

Each run is a process of its own; runs alternate, so that what else the machine does hits all alike. Read the ratios,
not the absolute numbers. `default` is TRL as it comes (fp32 weights, bf16 autocast, gradient checkpointing); `tuned`
loads bf16, switches checkpointing off and groups by length. Ours has one configuration. Speed is taken from the third
step to the last; loss is that of the last five steps in nats an example (the mean over labelled tokens times labelled
tokens an example), since the two label differently: ours the label and `<|im_end|>`, TRL also the newline after it, which
is soon learned and adds next to nothing; memory is the process's peak resident set (VmHWM), model loading included.
TRL (`pip install trl==1.16.* datasets`) may live in another environment than Burnish.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INSTRUCTION = "Classify the text. Answer with one of: negative, positive."
WARM_STEPS = 2
RANK, ALPHA, LEARNING_RATE = 8, 16, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of safetensors with tokenizer")
    parser.add_argument("--data", type=Path, default=Path("examples/data/sentiment_movie/sentiment_movie_train.jsonl"))
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["burnish", "trl-tuned", "trl-default"])
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = _run_burnish if options.side == "burnish" else _run_trl
        print("RESULT " + json.dumps(run(options)), flush=True)
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for turn in range(options.rounds):
        for side in options.sides:
            results[side].append(_start(options, side))
            print(f"round {turn + 1} {side}: {results[side][-1]}", file=sys.stderr, flush=True)
    report = _report(results)
    if options.json:
        options.json.write_text(json.dumps({"runs": results, "summary": report}, indent=2) + "\n")
    print(_table(report))


def _start(options: argparse.Namespace, side: str) -> dict[str, float]:
    python = sys.executable if side == "burnish" else options.trl_python
    argv = [python, __file__, "--side", side, "--model", str(options.model), "--data", str(options.data)]
    for name in ("examples", "steps", "batch", "threads"):
        argv += [f"--{name}", str(getattr(options, name))]
    from burnish.core.threads import thread_environment

    ours = thread_environment(options.threads) if side == "burnish" else {}  # the peer as it comes
    environment = os.environ | ours | {
        "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return found


def _rows(options: argparse.Namespace) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines() if line]
    kept = [{"text": r["text"], "label": r["label"]} for r in rows if r["label"] in ("negative", "positive")]
    random.Random(0).shuffle(kept)
    return kept[: options.examples]


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status")


def _measured(times: list[float], batch: int, losses: list[float], tokens_an_example: float) -> dict[str, float]:
    """Return what a run showed; ``losses`` are means over labelled tokens, of which an example has so many."""
    steps = len(times) - 1 - WARM_STEPS
    return {
        "examples_per_second": steps * batch / (times[-1] - times[WARM_STEPS]),
        "peak_bytes": float(_peak_bytes()),
        "nats_an_example": statistics.fmean(losses[-5:]) * tokens_an_example,
    }


def _run_burnish(options: argparse.Namespace) -> dict[str, float]:
    from burnish.core.specs import DatasetCard, FineTuningSpec, ModelCard
    from burnish.ml.train import sft
    from burnish.testing import LocalJobContext

    times: list[float] = []

    def tick(step: int, values: Mapping[str, float]) -> None:
        times.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        context = LocalJobContext(Path(folder), on_metric=tick)
        rows = _rows(options)
        data = context.stage("data")
        (data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        card = DatasetCard(format="classification", rows=len(rows), rows_hash="", labels={"negative": 1, "positive": 1})
        (data / "dataset.json").write_text(card.model_dump_json())
        train = context.publish(data, "dataset")
        model = context.stage("model")
        for path in options.model.iterdir():
            (model / path.name).symlink_to(path.resolve())
        if not (model / "burnish.json").exists():
            (model / "burnish.json").write_text(
                ModelCard(name="model", architecture="", parameters=0, dtype="", source="").model_dump_json()
            )
        base = context.publish(model, "model")
        times.append(time.monotonic())
        spec = FineTuningSpec(
            model=base, train=train, rank=RANK, alpha=ALPHA, learning_rate=LEARNING_RATE, batch_size=options.batch,
            max_steps=options.steps, checkpoint_steps=options.steps,
        )  # fmt: skip
        result = sft(spec, context)
        tokens = result.supervised_tokens / result.examples
        return _measured(times, options.batch, [point.loss for point in result.history], tokens)


def _run_trl(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(options.threads)
    times: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.monotonic())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.monotonic())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    labelled: list[int] = []
    examples: list[int] = []

    class Counting(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            labelled.append(int((inputs["labels"][:, 1:] != -100).sum()))
            examples.append(len(inputs["labels"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    tuned: dict[str, Any] = {}
    if options.side == "trl-tuned":
        tuned = {
            "model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }  # fmt: skip
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{INSTRUCTION}\n\n{row['text']}"}],
                "completion": [{"role": "assistant", "content": row["label"]}],
            }
            for row in _rows(options)
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=options.batch, max_steps=options.steps,
            learning_rate=LEARNING_RATE, report_to="none", save_strategy="no", use_cpu=True, logging_steps=1,
            disable_tqdm=True, **tuned,
        )  # fmt: skip
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = Counting(
            model=str(options.model), args=config, train_dataset=dataset, peft_config=lora, callbacks=[Clock()]
        )
        trainer.train()
        return _measured(times, options.batch, losses, sum(labelled) / sum(examples))


def _report(results: Mapping[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians by side, and ours against each other side."""
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in results.items()
    }
    ours = medians.get("burnish")
    for side, values in medians.items():
        if ours is not None and side != "burnish":
            values["speed_ratio"] = ours["examples_per_second"] / values["examples_per_second"]
            values["memory_ratio"] = ours["peak_bytes"] / values["peak_bytes"]
    return medians


def _table(report: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        "| side | examples/s | peak RSS MB | nats an example | ours: speed | ours: memory |",
        "|---|---|---|---|---|---|",
    ]
    for side, v in report.items():
        ratios = f"{v['speed_ratio']:.2f}x | {v['memory_ratio']:.2f}x" if "speed_ratio" in v else "- | -"
        lines.append(
            f"| {side} | {v['examples_per_second']:.1f} | {v['peak_bytes'] / 1e6:.0f} | {v['nats_an_example']:.3f} | {ratios} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
