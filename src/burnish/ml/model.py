"""Loading models and tokenizers from artifact folders, and the card that describes them."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from burnish.core.errors import BadModel
from burnish.ml.card import peak_memory_bytes as peak_memory_bytes
from burnish.ml.card import read_card as read_card
from burnish.ml.card import write_card as write_card
from burnish.ml.weights import TensorInfo, safetensors_in

DtypeName = Literal["auto", "bfloat16", "float32"]
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries print while they load; what matters is raised or logged by us."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf_log = logging.getLogger("transformers.modeling_gguf_pytorch_utils")
    gguf_level = gguf_log.level
    gguf_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf_log.setLevel(gguf_level)
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a model folder that can be loaded here.

    Raises:
        BadModel: no config, one that needs code of its own, an unknown or not causal architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadModel(
            "no config.json in the model folder", where=str(folder), hint="save the whole model: model.save_pretrained"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(
            f"config.json is not JSON: {error}", where=str(path), hint="download or save the model again"
        ) from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in CONFIG_MAPPING:
        if isinstance(raw, dict) and raw.get("auto_map"):
            raise BadModel(
                "the model needs code of its own (trust_remote_code), which is never run here",
                where=str(path),
                hint="use a model whose architecture Transformers knows",
            )
        raise BadModel(
            f"unknown architecture: model_type is {kind!r}",
            where=str(path),
            hint="use a model whose architecture Transformers knows",
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadModel(f"{kind!r} is not a causal language model", where=str(path), hint="use one that generates text")
    with quiet():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer, with a padding token.

    Raises:
        BadModel: there is none, or it cannot be read.
    """
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        raise BadModel(
            "no tokenizer beside the model", where=str(folder), hint="save it there: tokenizer.save_pretrained"
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise BadModel(
            f"the tokenizer cannot be loaded: {error}",
            where=str(folder),
            hint="save it again: tokenizer.save_pretrained",
        ) from error
    if tokenizer.eos_token_id is None:
        raise BadModel("the tokenizer has no end-of-text token", where=str(folder), hint="set eos_token and save again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype | Literal["auto"], **options: Any) -> PreTrainedModel:
    """Load a causal language model from safetensors; at the file's own dtype its pages are mapped, not copied.

    Args:
        folder: A model artifact's files.
        dtype: What the weights become; ``auto`` keeps them.
        options: Passed on to Transformers.

    Raises:
        BadModel: unsafe or damaged files, an unknown architecture, weights missing or of another shape.
    """
    read_config(folder)
    safetensors_in(folder)
    try:
        with quiet():
            loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except Exception as error:
        raise BadModel(
            f"the model cannot be loaded: {error}", where=str(folder), hint="download or save the model again"
        ) from error
    model, report = loaded
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    wrong = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing or wrong:
        raise BadModel(
            f"weights are missing or misshapen: {', '.join((missing + wrong)[:5])}",
            where=str(folder),
            hint="config.json and the weights do not belong together",
        )
    model.eval()
    return model


def resolve_dtype(name: DtypeName, *, full: bool = False) -> torch.dtype:
    """Return the dtype to compute in: bf16 by default, fp32 master weights when everything is trained."""
    if name == "float32" or (name == "auto" and full):
        return torch.float32
    return torch.bfloat16


def dtype_and_bits(tensors: list[TensorInfo]) -> tuple[str, float]:
    """Return the dtype that most weights have and the bits a weight takes on average."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.numel
    most = max(weights, key=lambda key: weights[key])
    bits = sum(_BITS.get(key, 8) * count for key, count in weights.items()) / max(1, sum(weights.values()))
    return _DTYPE_NAMES.get(most, most.lower()), bits


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the positions a model was made for."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def use_threads(count: int) -> None:
    """Use this many threads; more than there are free cores makes a step ten times slower."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(max(1, count))
