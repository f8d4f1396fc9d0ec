"""What a model artifact says about itself (``burnish.json`` in the artifact's folder)."""

from pydantic import Field

from burnish.core.specs.base import Digest, Spec

MODEL_CARD_FILE = "burnish.json"


class ModelCard(Spec):
    """Stored as ``burnish.json`` in every artifact of kind ``model``, ``adapter`` and ``gguf``."""

    name: str = Field(description="Short name, such as `SmolLM2-135M-Instruct`")
    architecture: str = Field(description="Transformers' class, such as `LlamaForCausalLM`")
    parameters: int = Field(ge=0, description="Number of weights (of the adapter alone, for an adapter)")
    dtype: str = Field(description="`bfloat16`, `float32`, `q8_0`, `q4_k_m` ...")
    bits_per_weight: float | None = Field(default=None, description="File bits by weights, as measured")
    source: str = Field(description="Where the base came from: hub name and revision, path, package")
    shipped_as: str | None = Field(default=None, description="The base's own quantization when it came, e.g. `Q4_1`")
    licence: str | None = None
    base: Digest | None = Field(default=None, description="The base model's artifact, for what was made from one")
    adapter: Digest | None = Field(default=None, description="The adapter merged into it, if one was")
    context_length: int | None = Field(default=None, description="Positions the model was made for")
    chat_template: bool = Field(default=False, description="Whether its tokenizer carries a chat template")
