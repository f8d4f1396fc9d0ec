"""What the fine-tuning component refuses before it accepts anything, and what it asks for."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from burnish.components.fine_tuning.kinds import KINDS, check_import, check_training, import_resources, with_fingerprint
from burnish.components.fine_tuning.recipes import Recipe, recipe, recipes
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.specs import ArtifactRef, FineTuningSpec, ImportModelSpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.platform.jobs.schemas import Check

_MODEL = ArtifactRef(digest="sha256:" + "1" * 64, kind="model", size_bytes=270_000_000)
_ELSEWHERE = SimpleNamespace(holds=lambda path: False)
"""A store that the source is not in."""
_DATA = ArtifactRef(digest="sha256:" + "2" * 64, kind="dataset", size_bytes=1000)


def _check(spec: dict[str, Any], unresolved: tuple[str, ...] = ()) -> Check:
    return Check(spec, None, "default", unresolved, cast(Any, None), cast(Any, _ELSEWHERE))


def _training(**changes: Any) -> dict[str, Any]:
    return FineTuningSpec(model=_MODEL, train=_DATA).model_dump(mode="json") | changes


async def _import_problems(source: Path | str) -> list[FieldProblem]:
    return await check_import(_check({"source": str(source)}))


async def test_a_hub_name_is_one_whatever_stands_in_the_servers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a name that is looked for from wherever the server was started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert await _import_problems("org/name") == []
    assert with_fingerprint(ImportModelSpec(source="org/name")).fingerprint is None


async def test_sources_that_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    accepted: list[Path | str] = [tmp_path, tmp_path / "m.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    for source in accepted:
        assert await _import_problems(source) == []
    assert await check_import(_check({}, ("source",))) == []


async def test_a_source_inside_the_artifact_store_is_as_if_nothing_were_there(tmp_path: Path) -> None:
    """Breaks with: another project's model imported by where its files lie."""
    store = FileArtifactStore(tmp_path / "artifacts")
    staged = store.stage("theirs")
    (staged / "config.json").write_text("{}")
    (staged / "model.safetensors").write_bytes(b"")
    files = store.open(store.publish(staged, "model"))
    (tmp_path / "link").symlink_to(files)
    for source in (files, tmp_path / "link", tmp_path / "a" / ".." / "link", store.root / "objects" / "nothing"):
        check = Check({"source": str(source)}, None, "default", (), cast(Any, None), store)
        assert [problem.message for problem in await check_import(check)] == [f"there is no model at {source}"]


async def test_sources_that_are_refused(tmp_path: Path) -> None:
    pickles, empty, mixed = tmp_path / "pickles", tmp_path / "empty", tmp_path / "mixed"
    for folder in (pickles, empty, mixed):
        folder.mkdir()
    (pickles / "pytorch_model.bin").write_bytes(b"x")
    (mixed / "a.gguf").write_bytes(b"no GGUF")
    (mixed / "readme.txt").write_text("x")
    refused: dict[Path | str, str] = {
        pickles: "pickles",
        pickles / "pytorch_model.bin": "pickle",
        empty: "no safetensors",
        mixed: "no safetensors",
        mixed / "a.gguf": "does not begin",
        mixed / "readme.txt": "not a GGUF",
        tmp_path / "nowhere": "no model at",
        "not a/name at all": "no model at",
        "./model.gguf": "a path from a folder that the server does not know",
        "saved/": "a path from a folder that the server does not know",
    }
    for source, says in refused.items():
        (problem,) = await _import_problems(source)
        assert says in problem.message
        assert problem.where == "spec.source"
    (problem,) = await _import_problems(mixed)
    assert "a.gguf" in (problem.hint or "")


def test_a_changed_source_is_another_spec(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF1")
    first = with_fingerprint(ImportModelSpec(source=str(path)))
    assert first == with_fingerprint(ImportModelSpec(source=str(path)))
    path.write_bytes(b"GGUF2")
    assert with_fingerprint(ImportModelSpec(source=str(path))) != first
    assert with_fingerprint(ImportModelSpec(source="org/name")).fingerprint is None


async def test_training_problems_are_placed() -> None:
    assert await check_training(_check(_training())) == []
    (problem,) = await check_training(_check(_training(recipe="nothing")))
    assert (problem.where, problem.hint) == ("spec.recipe", "there are sft")
    (problem,) = await check_training(_check(_training(model=_DATA.model_dump())))
    assert (problem.where, problem.message) == ("spec.model", "an artifact of kind dataset, not model")
    assert await check_training(_check({"epochs": 1}, ("model", "train"))) == []


async def test_qlora_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.components.fine_tuning.kinds.find_spec", lambda name: None)
    (problem,) = await check_training(_check(_training(method="qlora")))
    assert problem.where == "spec.method"
    assert "burnish[qlora]" in (problem.hint or "")


def test_estimates_grow_with_what_is_trained(tmp_path: Path) -> None:
    sft = KINDS["sft"]
    lora, full = (FineTuningSpec(model=_MODEL, train=_DATA, method=method) for method in ("lora", "full"))
    assert 1 << 30 < sft.resources(lora).memory_bytes < sft.resources(full).memory_bytes
    for spec in (lora, full):
        large = spec.model_copy(update={"train": _DATA.model_copy(update={"size_bytes": 10**9}), "validation": _DATA})
        assert sft.resources(large).memory_bytes - sft.resources(spec).memory_bytes == 12 * 10**9
    assert sft.seconds(lora) is None
    assert (sft.seconds(lora.model_copy(update={"max_steps": 50})) or 0) > 10
    assert sft.run_of(lora) == "burnish.ml.train:sft"
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(1 << 20))
    assert import_resources(ImportModelSpec(source=str(path))).memory_bytes == (2 << 30) + (12 << 20)


def test_recipes_have_manuals_and_unknown_ones_are_refused() -> None:
    assert set(recipes()) >= {"sft"}
    for each in recipes().values():
        assert isinstance(each, Recipe)
        assert len(each.manual) > 200
        module, _, function = each.run.partition(":")
        assert module
        assert function
    with pytest.raises(InvalidRequest):
        recipe("nothing")


def test_kinds_load_no_torch() -> None:
    code = "import sys, burnish.components.fine_tuning.kinds; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("source", ["/" + "a" * 5000, "/" + "a/" * 2500, "~nobody-of-this-name/model"])
async def test_a_source_that_cannot_be_looked_at_is_no_model(source: str) -> None:
    """Breaks with: a failure of the component, which counts against it for everybody."""
    assert [problem.message for problem in await check_import(_check({"source": source}))] == [
        f"there is no model at {source}"
    ]


async def test_a_source_that_may_not_be_looked_at_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refused)
    assert [problem.message for problem in await check_import(_check({"source": str(tmp_path)}))] == [
        f"there is no model at {tmp_path}"
    ]
