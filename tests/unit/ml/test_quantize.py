"""GGUF files are what the result says, and models that cannot become one are told why."""

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from burnish.core.errors import BadModel, InvalidRequest
from burnish.core.job import Stopped
from burnish.core.specs import ArtifactRef, CompressionResult, CompressionSpec
from burnish.ml import quantize
from burnish.ml.model import read_card
from burnish.ml.quantize import MODEL_FILE, convert, gguf
from burnish.ml.text import PLAIN_TEMPLATE
from burnish.ml.tiny import build
from burnish.ml.weights import read_gguf
from burnish.testing.job_context import LocalJobContext


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path / "job")


def compress(context: LocalJobContext, architecture: str, quantization: str, tmp_path: Path) -> CompressionResult:
    model = context.add(build(architecture, tmp_path / "model"), "model")
    return gguf(CompressionSpec(model=model, params={"quantization": quantization}), context)


def field(path: Path, name: str) -> object:
    found = GGUFReader(path).get_field(name)
    return None if found is None else found.contents()


@pytest.mark.parametrize("quantization", ["q8_0", "bf16"])
def test_a_tiny_model_becomes_gguf(quantization: str, context: LocalJobContext, tmp_path: Path) -> None:
    result = compress(context, "llama", quantization, tmp_path)
    folder = context.open(result.model)
    size = (folder / MODEL_FILE).stat().st_size
    card = read_card(folder)
    source = read_card(tmp_path / "model")
    assert result.model.kind == "gguf"
    assert result.size_bytes == size
    assert result.reference_bytes == 2 * source.parameters
    assert result.bits_per_weight == pytest.approx(size * 8 / source.parameters)
    assert (result.dtype, card.dtype, card.name) == (quantization, quantization, source.name)
    assert card.parameters == source.parameters
    assert card.base is not None
    assert card.base.startswith("sha256:")
    assert result.params == {"quantization": quantization}
    assert result.seconds > 0
    assert result.peak_memory_bytes > 0
    assert result.fallback_tensors == {}
    kinds = {tensor.dtype for tensor in read_gguf(folder / MODEL_FILE) if len(tensor.shape) > 1}
    assert kinds == {quantization.upper()}


def test_the_smallest_type_keeps_its_name(context: LocalJobContext, tmp_path: Path) -> None:
    """Breaks with: a number of another type behind the name."""
    result = compress(context, "llama", "iq4_nl", tmp_path)
    path = context.open(result.model) / MODEL_FILE
    kinds = [tensor.dtype for tensor in read_gguf(path) if len(tensor.shape) > 1]
    assert kinds.count("IQ4_NL") > len(kinds) / 2
    assert (result.dtype, read_card(path.parent).dtype) == ("iq4_nl", "iq4_nl")


def test_fallbacks_are_counted(context: LocalJobContext, tmp_path: Path) -> None:
    result = compress(context, "llama", "q4_k_m", tmp_path)
    tensors = read_gguf(context.open(result.model) / MODEL_FILE)
    kinds = [tensor.dtype for tensor in tensors if len(tensor.shape) > 1]
    assert "Q4_K" not in kinds  # rows of 32 and 64 cannot be cut into blocks of 256
    assert sum(result.fallback_tensors.values()) == len(kinds)
    assert set(result.fallback_tensors) == set(kinds)
    assert "fell back" in result.warnings[0]


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_configs_that_lack_what_the_converter_reads(
    architecture: str, context: LocalJobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(architecture, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    for key in ("n_ctx", "rotary_pct"):
        config.pop(key, None)
    (model / "config.json").write_text(json.dumps(config))
    source = tmp_path / "source"
    quantize._prepare_source(model, source)
    mended = json.loads((source / "config.json").read_text())
    assert mended["n_ctx"] == 512 if architecture == "gpt2" else mended["rotary_pct"] == 0.25
    assert json.loads((model / "config.json").read_text()) == config


def test_a_tokenizer_without_a_chat_template_gets_the_one_of_training(context: LocalJobContext, tmp_path: Path) -> None:
    model = build("llama", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    target = tmp_path / "model.gguf"
    convert(model, None, "f32", target, context)
    assert field(target, "tokenizer.chat_template") == PLAIN_TEMPLATE


def test_code_in_the_models_folder_is_not_run(context: LocalJobContext, tmp_path: Path) -> None:
    model = build("llama", tmp_path / "model")
    (model / "modeling_evil.py").write_text("import pathlib; pathlib.Path('/tmp/burnish-evil').touch()")
    source = tmp_path / "source"
    quantize._prepare_source(model, source)
    assert not (source / "modeling_evil.py").exists()


def test_an_unknown_tokenizer_is_told(context: LocalJobContext, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="does not know this tokenizer") as caught:
        compress(context, "qwen2", "q8_0", tmp_path)
    assert caught.value.hint is not None
    assert "transformers" in caught.value.hint


def test_an_unknown_architecture_is_told(context: LocalJobContext, tmp_path: Path) -> None:
    model = build("llama", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"architectures": ["NoSuchForCausalLM"], "model_type": "nosuch"})
    )
    reference = context.add(model, "model")
    with pytest.raises(BadModel, match="NoSuchForCausalLM"):
        gguf(CompressionSpec(model=reference), context)


def test_an_unknown_quantization_is_told(context: LocalJobContext, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="q3_x") as caught:
        compress(context, "llama", "q3_x", tmp_path)
    assert caught.value.where == "params.quantization"


def test_a_requested_stop_ends_the_conversion(context: LocalJobContext, tmp_path: Path) -> None:
    model = context.add(build("llama", tmp_path / "model"), "model")
    context.request_stop("cancel")
    with pytest.raises(Stopped):
        gguf(CompressionSpec(model=model), context)
    assert context.published == []


def test_a_cut_result_is_never_published(
    context: LocalJobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: ArtifactRef = context.add(build("llama", tmp_path / "model"), "model")
    whole = quantize._quantize

    def cut(source: Path, target: Path, name: str, job: LocalJobContext) -> None:
        whole(source, target, name, job)
        data = target.read_bytes()
        target.write_bytes(data[: len(data) - 1000])

    monkeypatch.setattr(quantize, "_quantize", cut)
    with pytest.raises(BadModel, match="is said to end at byte"):
        gguf(CompressionSpec(model=model, params={"quantization": "q8_0"}), context)
    assert context.published == []


def test_progress_is_told(context: LocalJobContext, tmp_path: Path) -> None:
    compress(context, "llama", "q8_0", tmp_path)
    phases = {phase for _, _, phase, _ in context.progressed}
    assert "converting to GGUF" in phases
