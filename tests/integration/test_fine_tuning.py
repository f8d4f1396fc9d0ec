"""The fine-tuning kinds through validation as the component does it."""

from pathlib import Path

from burnish.components.fine_tuning.kinds import KINDS
from burnish.core.protocol import JobRequest
from burnish.core.specs import ImportModelSpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.jobs.validation import validate


async def test_a_local_source_is_fingerprinted_when_it_is_submitted(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    store = FileArtifactStore(tmp_path / "artifacts")
    request = JobRequest(kind="import_model", spec={"source": str(path)})
    first, parsed = await validate(request, KINDS, database, store)
    assert not first.problems
    assert isinstance(parsed, ImportModelSpec)
    assert parsed.fingerprint is not None
    assert first.spec is not None
    assert first.spec["fingerprint"] == parsed.fingerprint
    path.write_bytes(b"GGUF" + bytes(101))
    second, _ = await validate(request, KINDS, database, store)
    assert second.spec is not None
    assert second.spec["fingerprint"] != parsed.fingerprint


async def test_what_cannot_be_imported_is_refused_with_its_place(database: Database, tmp_path: Path) -> None:
    store = FileArtifactStore(tmp_path / "artifacts")
    request = JobRequest(kind="import_model", spec={"source": str(tmp_path / "nowhere")})
    answer, _ = await validate(request, KINDS, database, store)
    (problem,) = answer.problems
    assert problem.where == "spec.source"
    assert problem.hint is not None
