"""Supervised fine-tuning: the model learns to answer prompts as the dataset does.

The loss is taken over the completion alone, its end-of-turn token included; for plain `text` datasets over every
token. Rows are classification (`text`, `label`), `prompt` and `completion`, or chat `messages`; the model's own chat
template writes the prompt. No example is ever cut: what is longer than `max_length` is dropped and counted, or an error.

**Methods.** `lora` trains small matrices beside every linear layer (rank 4-16 is plenty for most tasks; memory is
about that of the model); `qlora` the same over a base in 4 bits, where bitsandbytes runs; `full` trains every weight
(about sixteen bytes a weight).

**Learning rate.** 1e-3 for LoRA on models under a billion weights, 2e-4 above; 2e-5 for `full`. If the loss becomes
infinite the training stops before the weights change and names the rows.

**Resuming.** A checkpoint every `checkpoint_steps` steps; a training killed or paused at any step ends bit-equal to one
that never stopped, on the same kind of processor with the same number of threads.
"""

import os

from burnish.components.fine_tuning.recipes.base import Recipe
from burnish.core.specs import FineTuningSpec, Resources

_GIB = 1 << 30
_BASE_BYTES = _GIB
"""Python, torch, logits, and room to spare."""
_PASS_TOKENS = 512
"""Tokens of one forward pass; an example longer than this is a pass of its own."""


_DATA_FACTOR = 12
"""Rows and tokens in memory, in terms of the dataset's size (measured: 2 to 5 times, more where rows are a few words)."""


def estimate(spec: FineTuningSpec) -> Resources:
    """Return what a training needs; memory is also its limit, so that this errs on the large side."""
    weights = spec.model.size_bytes or _GIB
    passes = max(1.0, spec.max_length / _PASS_TOKENS)
    data = _DATA_FACTOR * (spec.train.size_bytes + (spec.validation.size_bytes if spec.validation else 0))
    # A pass holds about one and a half times the weights' size in bf16 (measured at 135M weights).
    activations = int(2 * weights * passes)
    if spec.method == "full":
        # float32 values (twice, while they are laid out), gradient and two moments, from a bf16 file
        memory = _BASE_BYTES + data + 10 * weights + 2 * activations
        disk = 10 * weights
    else:
        widened = 2 if spec.dtype == "float32" else 1
        adapter = weights * spec.rank // 64
        memory = _BASE_BYTES + data + widened * (weights + activations) + 5 * adapter
        disk = 8 * adapter + (64 << 20)
    return Resources(cpus=min(2, os.cpu_count() or 1), memory_bytes=memory, disk_bytes=disk)


def seconds(spec: FineTuningSpec) -> float | None:
    """Return a rough time on two cores, where the number of steps is known."""
    if spec.max_steps is None:
        return None
    examples = spec.max_steps * spec.batch_size
    return 10 + examples * (spec.model.size_bytes or _GIB) / 4e9


RECIPE = Recipe(
    name="sft",
    summary="Supervised fine-tuning on prompts and completions (LoRA, QLoRA or full)",
    manual=__doc__,
    run="burnish.ml.train:sft",
    methods=("lora", "qlora", "full"),
    resources=estimate,
    seconds=seconds,
)
