"""Unpacking a GGUF file to a Transformers model, without the library's repeated work.

Transformers 5 parses the file once for the config, once for the tokenizer and once for the weights, element by
element, and makes the map of tensor names anew for each module: half a minute for a model of 135M weights. Reading
once and remembering the map makes that a few seconds; what is computed is the same.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from burnish.core.errors import BadModel
from burnish.ml.model import quiet


def unpack(path: Path) -> tuple[PreTrainedModel, Any]:
    """Return a GGUF file's model in bfloat16 and its tokenizer.

    Raises:
        BadModel: an architecture or quantization that is not supported, or weights missing.
    """
    try:
        # The unpacking draws a progress bar that cannot be switched off.
        with quiet(), redirect_stderr(io.StringIO()), _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            model, report = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True
            )
    except Exception as error:
        raise BadModel(
            f"the GGUF file cannot be unpacked: {error}", where=str(path), hint="its architecture may not be supported"
        ) from error
    if missing := sorted(str(key) for key in report.get("missing_keys", ())):
        raise BadModel(f"weights are missing: {', '.join(missing[:5])}", where=str(path))
    # The weights are plain bfloat16 now; Transformers still takes the model for a quantized one and would not save it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


class _ArrayReader(gguf.GGUFReader):
    """Reads through a plain array: slicing a ``memmap`` object costs several times as much, millions of times."""

    data: Any

    def _build_fields(self, offset: int, count: int) -> int:
        self.data = self.data.view(np.ndarray)
        return int(super()._build_fields(offset, count))


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Within this block, each file is parsed once and each map of tensor names made once."""
    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lru_cache(maxsize=1)(_ArrayReader)
    gguf.get_tensor_name_map = lru_cache(maxsize=1)(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map
