"""What is wrong with a compression is told before it is accepted, with its place and the nearest name."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from burnish.components.compression.kinds import KINDS, check_compression, compression_function
from burnish.components.compression.methods import methods
from burnish.core.errors import FieldProblem
from burnish.core.specs import ArtifactRef, CompressionSpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.jobs.schemas import Check

MODEL = {"digest": "sha256:" + "1" * 64, "kind": "model", "size_bytes": 1 << 28}


async def problems_of(spec: dict[str, Any], tmp_path: Path, unresolved: tuple[str, ...] = ()) -> list[FieldProblem]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    store = FileArtifactStore(tmp_path / "artifacts")
    try:
        return await check_compression(Check(spec, None, "default", unresolved, database, store))
    finally:
        await database.dispose()


async def test_a_sound_spec_has_no_problems(tmp_path: Path) -> None:
    assert await problems_of({"model": MODEL, "method": "gguf", "params": {"quantization": "q8_0"}}, tmp_path) == []
    assert await problems_of({"model": MODEL}, tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "where", "hint"),
    [
        ({"method": "ggfu"}, "spec.method", "did you mean 'gguf'"),
        ({"params": {"quantisation": "q8_0"}}, "spec.params.quantisation", "did you mean 'quantization'"),
        ({"params": {"quantization": "q8_1"}}, "spec.params.quantization", "did you mean 'q8_0'"),
        ({"model": {**MODEL, "kind": "gguf"}}, "spec.model", "compress the model that it was made from"),
    ],
)
async def test_what_is_wrong_is_told_with_place_and_mend(
    spec: dict[str, Any], where: str, hint: str, tmp_path: Path
) -> None:
    (problem,) = await problems_of({"model": MODEL, **spec}, tmp_path)
    assert problem.where == where
    assert hint in (problem.hint or "")


async def test_an_adapter_must_be_one(tmp_path: Path) -> None:
    (problem,) = await problems_of({"model": MODEL, "adapter": MODEL}, tmp_path)
    assert problem.where == "spec.adapter"


async def test_what_is_not_there_yet_is_not_judged(tmp_path: Path) -> None:
    assert await problems_of({"method": "gguf"}, tmp_path, ("model", "params.quantization")) == []
    assert await problems_of({"params": {"quantization": "x"}}, tmp_path, ("params.quantization",)) == []


def test_every_method_can_be_resolved_and_explains_itself() -> None:
    for name, method in methods().items():
        module, _, function = method.run.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert method.name == name
        assert len(method.manual) > 200
        spec = CompressionSpec(
            model=ArtifactRef.model_validate(MODEL), method=name, params=method.params().model_dump(mode="json")
        )
        assert method.resources(spec).memory_bytes > MODEL["size_bytes"]  # type: ignore[operator]
        assert (method.seconds(spec) or 1) > 0
        assert compression_function(spec) == method.run
        assert KINDS["compress"].run_of(spec) == method.run
