from pathlib import Path

import pytest

from burnish.core.errors import ArtifactCorrupt, NotFound
from burnish.core.job import JobContext, Stopped
from burnish.core.specs.base import ArtifactRef
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
    (context.path_of(artifact) / "a.txt").write_text("changed")
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
