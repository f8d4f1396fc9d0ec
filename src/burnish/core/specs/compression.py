"""The compression component's kind ``compress``."""

from pydantic import Field, JsonValue

from burnish.core.specs.base import ArtifactRef, Spec


class CompressionSpec(Spec):
    """Make a model smaller. An adapter is merged into its base first."""

    model: ArtifactRef = Field(description="The base, or a whole model")
    adapter: ArtifactRef | None = Field(default=None, description="Merged into `model` before compression")
    method: str = Field(default="gguf", description="A name of the component's methods")
    params: dict[str, JsonValue] = Field(default_factory=dict, description="The method's own parameters")


class CompressionResult(Spec):
    """The compressed model and what it cost and gained."""

    model: ArtifactRef
    method: str
    params: dict[str, JsonValue]
    dtype: str
    reference_bytes: int = Field(description="Size of the uncompressed model in bf16")
    size_bytes: int
    bits_per_weight: float
    fallback_tensors: dict[str, int] = Field(
        default_factory=dict, description="Tensors by the type they really have, where not the one asked for"
    )
    seconds: float
    peak_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()
