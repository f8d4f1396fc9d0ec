"""The evaluation component's kinds: ``evaluate`` and the paired comparison of two evaluations."""

from typing import Literal

from pydantic import Field

from burnish.core.specs.base import ArtifactRef, Estimate, Spec
from burnish.core.specs.serving import EngineName

EXAMPLES_FILE = "examples.jsonl"
"""In the ``examples`` artifact: one JSON object an example, in test-set order, with at least ``id`` (hash of the row)
and ``score`` (the headline's value for that example, higher is better)."""


class EvaluationSpec(Spec):
    """Measure a model on a dataset, as it would be served."""

    model: ArtifactRef = Field(description="Kind `model` or `gguf`")
    adapter: ArtifactRef | None = Field(default=None, description="On top of `model`")
    dataset: ArtifactRef
    task: str = Field(default="classification", description="A name of the component's tasks")
    engine: EngineName = "llama_cpp"
    limit: int | None = Field(default=None, ge=1, description="Use only the first rows")
    instruction: str | None = Field(default=None, description="As in training")
    max_tokens: int = Field(default=64, ge=1, le=4096, description="For generation")
    context_length: int = Field(default=1024, ge=64)
    seed: int = 0
    label: str = Field(default="", description="What to call this model in reports: base, tuned, compressed")


class ServedAs(Spec):
    """What was served, and how it behaved while it was measured."""

    engine: EngineName
    model: ArtifactRef
    adapter: ArtifactRef | None = Field(default=None, description="On top of `model`")
    dtype: str
    size_bytes: int
    memory_bytes: int = Field(description="PSS of the serving process after the run")
    tokens_per_second: float = Field(description="Generated tokens by second, one stream")
    latency_p50_seconds: float
    latency_p95_seconds: float
    load_seconds: float


class EvaluationResult(Spec):
    """Quality with intervals; per-example results in ``examples``."""

    task: str
    label: str = ""
    headline: str = Field(description="The key in `metrics` that the gate judges by default")
    metrics: dict[str, Estimate]
    higher_is_better: dict[str, bool] = Field(default_factory=dict)
    dataset: ArtifactRef
    examples: ArtifactRef = Field(description="Report artifact with `examples.jsonl`")
    served: ServedAs
    request: dict[str, object] = Field(
        default_factory=dict, description="What an openai client sends to reproduce the headline, less the messages"
    )
    skipped: int = Field(default=0, description="Rows that could not be scored; never silent")


class PairedDifference(Spec):
    """Two models on the same examples: ``candidate - baseline`` of the headline."""

    baseline: str
    candidate: str
    difference: float
    low: float
    high: float
    confidence: float = 0.95
    p_value: float
    method: Literal["mcnemar_exact_newcombe", "paired_t_bootstrap"]
    n: int
    only_candidate: int = Field(default=0, description="Examples that only the candidate got right")
    only_baseline: int = Field(default=0, description="Examples that only the baseline got right")
    needed_n: int | None = Field(default=None, description="Examples for 80 % power at the observed difference")
