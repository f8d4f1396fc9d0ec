import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.core.errors import ArtifactCorrupt, NotFound
from burnish.core.job import JobContext, Stopped
from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.testing import LocalJobContext


def _published(context: JobContext, text: str) -> ArtifactRef:
    staged = context.stage("report")
    (staged / "a.txt").write_text(text)
    return context.publish(staged, "report")


def test_equal_files_are_one_artifact(tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    first, second, other = _published(context, "x"), _published(context, "x"), _published(context, "y")
    assert first == second != other
    assert (context.open(first) / "a.txt").read_text() == "x"
    assert first.size_bytes == 1


def test_changed_and_missing_artifacts_are_refused(tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    artifact = _published(context, "x")
    file = context.path_of(artifact) / "a.txt"
    file.chmod(0o644)
    file.write_text("changed")
    with pytest.raises(ArtifactCorrupt):
        context.open(artifact)
    with pytest.raises(NotFound):
        context.open(ArtifactRef(digest="sha256:" + "0" * 64, kind="model"))


def test_stop_and_restart(tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    context.check_stop()
    staged = context.stage("checkpoint")
    (staged / "state").write_text("1")
    context.publish_checkpoint(staged, 3)
    context.request_stop("pause")
    assert context.stop_requested()
    with pytest.raises(Stopped):
        context.check_stop()
    again = context.restarted()
    assert again.resume_from is not None
    assert (again.resume_from / "state").read_text() == "1"
    assert not again.stop_requested()


def test_what_is_published_is_as_read_only_as_in_the_real_store(tmp_path: Path) -> None:
    context, store = LocalJobContext(tmp_path / "local"), FileArtifactStore(tmp_path / "real")

    def modes(staged: Path, publish: Callable[[Path], Path]) -> dict[str, int]:
        (staged / "deep" / "er").mkdir(parents=True)
        for name in ("a", "deep/er/b"):
            (staged / name).write_text(name)
        root = publish(staged)
        return {path.relative_to(root).as_posix(): path.stat().st_mode for path in (root, *root.rglob("*"))}

    local = modes(context.stage("x"), lambda staged: context.open(context.publish(staged, "report")))
    assert local == modes(store.stage("x"), lambda staged: store.open(store.publish(staged, "report")))
    assert stat.S_IMODE(local["."]) == 0o555


def test_a_published_folder_can_be_added_to_another_context(tmp_path: Path) -> None:
    first, second = LocalJobContext(tmp_path / "first"), LocalJobContext(tmp_path / "second")
    artifact = _published(first, "x")
    assert second.add(first.open(artifact), "report") == artifact
