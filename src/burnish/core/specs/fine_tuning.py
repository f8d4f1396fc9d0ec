"""The kinds of the fine-tuning component: ``import_model`` and ``sft``."""

from typing import Literal

from pydantic import Field

from burnish.core.specs.base import ArtifactRef, Spec


class ImportModelSpec(Spec):
    """Make a base model an artifact: safetensors, config and tokenizer."""

    source: str = Field(
        description="Hub name (`org/name`), a folder of safetensors, or a GGUF file", min_length=1, max_length=4096
    )
    revision: str | None = Field(default=None, description="Hub revision; resolved to a commit and recorded")
    licence: str | None = None
    name: str | None = Field(default=None, description="Short name; from the source by default")
    fingerprint: str | None = Field(default=None, description="Hash of a local source, filled in at submit")


class ImportModelResult(Spec):
    """The imported base model."""

    model: ArtifactRef
    name: str
    architecture: str
    parameters: int
    shipped_as: str | None = None
    licence: str | None = None
    source: str = ""


class FineTuningSpec(Spec):
    """Supervised fine-tuning (recipe ``sft``)."""

    model: ArtifactRef = Field(description="Base model (kind `model`)")
    train: ArtifactRef = Field(description="Training set")
    validation: ArtifactRef | None = Field(default=None, description="Watched during training, if given")
    recipe: str = Field(default="sft", description="A name of the component's recipes")
    method: Literal["lora", "qlora", "full"] = "lora"
    rank: int = Field(default=8, ge=1, le=1024, description="LoRA rank r")
    alpha: float = Field(default=16, gt=0, description="LoRA scale numerator: the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    epochs: float = Field(default=1, ge=0, le=1000)
    max_steps: int | None = Field(default=None, ge=0, description="Optimizer steps; overrides `epochs`")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Examples an optimizer step")
    learning_rate: float = Field(default=1e-3, gt=0, lt=10)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=512, ge=8, le=1 << 20, description="Tokens an example, prompt and completion")
    on_truncation: Literal["fail", "drop"] = Field(
        default="drop", description="An example longer than `max_length`: an error, or dropped and counted"
    )
    instruction: str | None = Field(
        default=None, description="For classification rows; made from the labels by default"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    seed: int = 0
    checkpoint_steps: int = Field(default=50, ge=1, description="Steps between checkpoints")


class LossPoint(Spec):
    """One optimizer step's loss."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float


class FineTuningResult(Spec):
    """The adapter (or whole model) and how the training went."""

    adapter: ArtifactRef | None = Field(description="PEFT adapter; none for `full`")
    model: ArtifactRef | None = Field(default=None, description="The tuned model, for `full`")
    base: ArtifactRef
    steps: int
    epochs: float
    examples: int = Field(description="Examples trained on, repeats counted")
    dropped: int = Field(description="Examples left out because they were too long")
    supervised_tokens: int
    first_loss: float | None = None
    final_loss: float | None = None
    validation_loss: float | None = None
    history: tuple[LossPoint, ...] = ()
    data_order_hash: str = Field(description="Hash of the order in which examples were seen")
    examples_per_second: float = 0.0
    peak_memory_bytes: int = 0
    resumed_from_step: int | None = None
    trainable_parameters: int = 0
    code_version: str = ""
