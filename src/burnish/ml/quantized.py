"""Loading a base in 4 bits for QLoRA, where bitsandbytes runs (Dettmers et al., "QLoRA", 2023)."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from burnish.core.errors import BadModel, InvalidRequest
from burnish.ml.model import load_model

_BLOCK = 64
"""Weights that share a scale in bitsandbytes' NF4."""


def load_quantized(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model with its linear layers in NF4, computing in ``dtype``.

    Raises:
        InvalidRequest: bitsandbytes is not installed.
        BadModel: as :func:`burnish.ml.model.load_model`; layers that 4-bit blocks do not divide.
    """
    if find_spec("bitsandbytes") is None:
        raise InvalidRequest(
            "method qlora needs bitsandbytes, which is not installed here", where="method",
            hint="pip install 'burnish[qlora]', or use method lora",
        )  # fmt: skip
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = load_model(folder, dtype, quantization_config=config, device_map={"": device})
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight.dtype == torch.uint8 and layer.in_features % _BLOCK:
            raise BadModel(
                f"layer {name} has {layer.in_features} inputs, which 4-bit blocks of {_BLOCK} do not divide",
                where=str(folder), hint="use method lora",
            )  # fmt: skip
    return model
