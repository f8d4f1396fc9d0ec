"""The recipe ``sft``: supervised fine-tuning on prompts and completions, in one readable loop.

Promises: the same spec, inputs and thread count give the same adapter, bit for bit, on a CPU, also when the run was
killed or paused at any step and resumed; weights are never updated with a loss that is not finite; no example is cut.
"""

import hashlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from burnish.core.errors import BadData, JobFailed, NonFiniteLoss
from burnish.core.job import JobContext
from burnish.core.specs.base import ArtifactRef, digest_of
from burnish.core.specs.fine_tuning import FineTuningResult, FineTuningSpec, LossPoint
from burnish.core.specs.model import ModelCard
from burnish.core.version import __version__
from burnish.ml import checkpoint, lora
from burnish.ml.batches import DataOrder, MicroBatch, micro_batches
from burnish.ml.loss import token_losses, use_flat
from burnish.ml.model import (
    context_length,
    load_model,
    load_tokenizer,
    peak_memory_bytes,
    quiet,
    read_card,
    resolve_dtype,
    use_threads,
    write_card,
)
from burnish.ml.norm import freeze_norms
from burnish.ml.optimizer import FlatAdamW, learning_rate_at
from burnish.ml.quantized import load_quantized
from burnish.ml.text import EncodedData, Example, encode, read_dataset

TOKEN_BUDGET = 512
"""Tokens of one forward pass on a CPU: enough rows to fill a matrix product, few enough to keep memory low."""
_GPU_TOKEN_BUDGET = 16384


@dataclass
class _Run:
    """A training under way."""

    spec: FineTuningSpec
    context: JobContext
    card: ModelCard
    tokenizer: Any
    model: PreTrainedModel
    adapters: dict[str, lora.LoraLinear]
    optimizer: FlatAdamW
    data: EncodedData
    validation: EncodedData | None
    order: DataOrder
    total_steps: int
    flat: bool
    autocast: bool
    step: int = 0
    examples: int = 0
    supervised_tokens: int = 0
    history: list[LossPoint] = field(default_factory=list)
    validation_loss: float | None = None
    resumed_from: int | None = None
    checkpointed: int = 0

    @property
    def spec_digest(self) -> str:
        """What a checkpoint must belong to. How often checkpoints are written changes nothing in them."""
        return digest_of(self.spec.model_dump(mode="json", exclude={"checkpoint_steps"}))

    @property
    def epoch(self) -> float:
        """Epochs done, with a fraction."""
        return self.step / self.order.steps_an_epoch

    def micro_batches(self, examples: list[Example]) -> list[MicroBatch]:
        """Cut a batch for one forward pass each."""
        budget = TOKEN_BUDGET if self.model.device.type == "cpu" else _GPU_TOKEN_BUDGET
        return micro_batches(
            examples, token_budget=budget, pad=self.tokenizer.pad_token_id, share_prefix=self.flat,
            limit=context_length(self.model.config) or self.spec.max_length,
        )  # fmt: skip


def sft(spec: FineTuningSpec, context: JobContext) -> FineTuningResult:
    """Fine-tune a model on a dataset and publish the adapter (or, for ``full``, the model).

    Raises:
        BadModel: the model cannot be loaded, or has no tokenizer.
        BadData: rows that cannot be learned from; says which.
        InvalidRequest: target modules that the model does not have.
        NonFiniteLoss: loss or gradient became NaN or infinite; the weights are those of the step before.
    """
    use_threads(context.resources.cpus)
    torch.manual_seed(spec.seed)
    run = _prepare(spec, context)
    _resume(run)
    started, before = time.monotonic(), run.examples
    _train(run)
    seconds = time.monotonic() - started
    return _finish(run, (run.examples - before) / seconds if run.examples > before else 0.0)


def _prepare(spec: FineTuningSpec, context: JobContext) -> _Run:
    context.progress(0, 1, phase="loading the model")
    folder = context.open(spec.model)
    card = read_card(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        context.log("the tokenizer has no chat template: messages are written one after another", "warning")
    full = spec.method == "full"
    dtype = resolve_dtype(spec.dtype, full=full)
    if spec.method == "qlora":
        model = load_quantized(folder, dtype)
    else:
        model = load_model(folder, torch.float32 if full else dtype)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    context.check_stop()
    context.progress(0, 1, phase="reading the data")
    data = _encode(spec, spec.train, tokenizer, model, context)
    validation = (
        _encode(spec, spec.validation, tokenizer, model, context, data.instruction) if spec.validation else None
    )
    order = DataOrder([len(example.ids) for example in data.examples], spec.batch_size, spec.seed)
    total = spec.max_steps if spec.max_steps is not None else math.ceil(spec.epochs * order.steps_an_epoch)
    limit = context_length(model.config) or spec.max_length
    flat = spec.method != "qlora" and use_flat(model, list(data.examples), tokenizer.pad_token_id, limit)
    adapters: dict[str, lora.LoraLinear] = {}
    if not full:
        targets = lora.find_targets(model, spec.target_modules)
        adapters = lora.attach(
            model, targets, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout, seed=spec.seed
        )  # fmt: skip
        freeze_norms(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = FlatAdamW(trainable, weight_decay=spec.weight_decay)
    return _Run(
        spec=spec, context=context, card=card, tokenizer=tokenizer, model=model, adapters=adapters, optimizer=optimizer,
        data=data, validation=validation, order=order, total_steps=total, flat=flat,
        autocast=full and spec.dtype == "bfloat16",
    )  # fmt: skip


def _encode(
    spec: FineTuningSpec, dataset: ArtifactRef, tokenizer: Any, model: PreTrainedModel, context: JobContext,
    instruction: str | None = None,
) -> EncodedData:  # fmt: skip
    card, rows = read_dataset(context.open(dataset))
    limit = min(spec.max_length, context_length(model.config) or spec.max_length)
    data = encode(
        rows, card, tokenizer, max_length=limit, instruction=spec.instruction or instruction,
        fail_on_truncation=spec.on_truncation == "fail",
    )  # fmt: skip
    if data.dropped:
        context.log(
            f"dropped {len(data.dropped)} of {len(rows)} rows longer than {limit} tokens: rows "
            + ", ".join(map(str, data.dropped[:10])) + (" ..." if len(data.dropped) > 10 else ""),
            "warning",
        )  # fmt: skip
    return data


def _resume(run: _Run) -> None:
    folder = run.context.resume_from
    if folder is None:
        return
    position = checkpoint.load(folder, run.spec_digest, run.data.digest, run.optimizer)
    run.step = run.resumed_from = run.checkpointed = position.step
    run.examples = position.examples
    run.supervised_tokens = position.supervised_tokens
    run.history = list(position.history)
    # Walk the order up to here, so that its hash goes on from the same examples.
    for _ in run.order.until(position.step):
        pass
    if run.order.digest != position.data_order:
        raise JobFailed("the data are in another order than when the checkpoint was written", where=str(folder))
    run.context.log(f"resumed from step {run.step}")


def _train(run: _Run) -> None:
    """Take all remaining steps."""
    spec, context = run.spec, run.context
    context.progress(run.step, run.total_steps, phase="training")
    for step, indices in run.order.until(run.total_steps):
        began = time.monotonic()
        batch = [run.data.examples[index] for index in indices]
        supervised = sum(example.supervised for example in batch)
        if not supervised:
            raise BadData(f"step {step} has no supervised token", where=_name_rows(batch))
        loss = _accumulate(run, batch, supervised, step)
        norm = run.optimizer.clip(spec.max_grad_norm)
        if not math.isfinite(norm):
            raise _non_finite("gradient", step, batch)
        rate = learning_rate_at(step, run.total_steps, spec.learning_rate, spec.schedule, spec.warmup)
        run.optimizer.update(rate)

        run.step = step
        run.examples += len(batch)
        run.supervised_tokens += supervised
        run.history.append(LossPoint(step=step, loss=loss, learning_rate=rate, grad_norm=norm))
        values = {
            "loss": loss, "learning_rate": rate, "grad_norm": norm,
            "examples_per_second": len(batch) / (time.monotonic() - began),
        }  # fmt: skip
        if step % run.order.steps_an_epoch == 0 and step < run.total_steps and run.validation is not None:
            if (validated := _validate(run)) is None:
                context.log(f"stopped in the validation after step {step}, which is left out")
            else:
                values["validation_loss"] = validated
        stopping = context.stop_requested()
        if step < run.total_steps and (step % spec.checkpoint_steps == 0 or stopping):
            _checkpoint(run)
        context.metric(step, values)
        context.progress(step, run.total_steps, phase="training")
        context.check_stop()


def _accumulate(run: _Run, batch: list[Example], supervised: int, step: int) -> float:
    """Add the batch's gradient; return its loss, the mean over all its supervised tokens.

    Raises:
        NonFiniteLoss: before any weight has changed.
    """
    total = 0.0
    for micro in run.micro_batches(batch):
        losses = token_losses(run.model, micro, flat=run.flat, autocast=run.autocast)
        part = losses.sum() / supervised
        value = float(part.detach())
        if not math.isfinite(value):
            bad = (~losses.detach().isfinite()).nonzero()[:, 0].cpu()
            owners = sorted(set(micro.owners[bad].tolist()))
            raise _non_finite("loss", step, [micro.examples[owner] for owner in owners] or list(micro.examples))
        part.backward()
        total += value
    return total


def _non_finite(what: str, step: int, examples: list[Example]) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"the {what} of step {step} is not finite; the weights were not updated with it",
        where=_name_rows(examples),
        hint="lower learning_rate, look at these rows, or set dtype to float32",
    )


def _name_rows(examples: list[Example]) -> str:
    rows = sorted(example.row for example in examples)
    return "rows " + ", ".join(map(str, rows[:16])) + (" ..." if len(rows) > 16 else "")


@torch.no_grad()
def _validate(run: _Run) -> float | None:
    """Return the validation set's loss, the mean over supervised tokens, of the model as it would be published.

    None if the job is asked to stop meanwhile: the caller then keeps what was trained.
    """
    assert run.validation is not None
    examples = sorted(run.validation.examples, key=lambda example: len(example.ids))
    total = 0.0
    size = max(8, run.spec.batch_size)
    for first in range(0, len(examples), size):
        if run.context.stop_requested():
            return None
        with lora.without_dropout(run.adapters):
            for micro in run.micro_batches(examples[first : first + size]):
                total += float(token_losses(run.model, micro, flat=run.flat, autocast=run.autocast).sum())
        done = min(first + size, len(examples))
        run.context.progress(done, len(examples), phase="validating", unit="examples")
    run.validation_loss = total / sum(example.supervised for example in examples)
    return run.validation_loss


def _checkpoint(run: _Run) -> None:
    if run.checkpointed == run.step:
        return
    staged = run.context.stage("checkpoint")
    position = checkpoint.Position(
        spec=run.spec_digest, data=run.data.digest, step=run.step, epoch=run.epoch, data_order=run.order.digest, examples=run.examples,
        supervised_tokens=run.supervised_tokens, history=tuple(run.history),
    )  # fmt: skip
    checkpoint.save(staged, position, run.optimizer)
    run.context.publish_checkpoint(staged, run.step)
    run.checkpointed = run.step


def _finish(run: _Run, examples_per_second: float) -> FineTuningResult:
    if run.validation is not None and _validate(run) is None:
        _checkpoint(run)
        run.context.check_stop()
    run.context.progress(run.total_steps, run.total_steps, phase="publishing")
    peak = peak_memory_bytes()
    full = run.spec.method == "full"
    published = _publish_model(run) if full else _publish_adapter(run)
    return FineTuningResult(
        adapter=None if full else published, model=published if full else None, base=run.spec.model, steps=run.step,
        epochs=run.epoch, examples=run.examples, dropped=len(run.data.dropped),
        supervised_tokens=run.supervised_tokens, first_loss=run.history[0].loss if run.history else None,
        final_loss=run.history[-1].loss if run.history else None, validation_loss=run.validation_loss,
        history=tuple(run.history), data_order_hash=run.order.digest, examples_per_second=examples_per_second,
        peak_memory_bytes=peak, resumed_from_step=run.resumed_from,
        trainable_parameters=run.optimizer.values.numel(), code_version=code_version(),
    )  # fmt: skip


def _publish_adapter(run: _Run) -> ArtifactRef:
    spec = run.spec
    staged = run.context.stage("adapter")
    lora.save_adapter(
        run.adapters, run.model, staged, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout, base_name=run.card.name
    )
    card = run.card.model_copy(
        update={
            "parameters": run.optimizer.values.numel(), "dtype": "float32", "bits_per_weight": 32.0,
            "base": spec.model.digest, "shipped_as": None,
        }
    )  # fmt: skip
    write_card(staged, card)
    return run.context.publish(staged, "adapter", card.model_dump(mode="json"))


def _publish_model(run: _Run) -> ArtifactRef:
    staged = run.context.stage("model")
    kept = torch.float32 if run.card.dtype == "float32" else torch.bfloat16
    run.model.to(kept)
    with quiet():
        run.model.save_pretrained(staged)
        run.tokenizer.save_pretrained(staged)
    card = run.card.model_copy(
        update={
            "base": run.spec.model.digest, "shipped_as": None, "dtype": str(kept).removeprefix("torch."),
            "bits_per_weight": 32.0 if kept == torch.float32 else 16.0,
        }
    )  # fmt: skip
    write_card(staged, card)
    return run.context.publish(staged, "model", card.model_dump(mode="json"))


def code_version() -> str:
    """Return the package's version and a hash of the training code, for lineage."""
    hashed = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(path.read_bytes())
    return f"{__version__}+{hashed.hexdigest()[:12]}"
