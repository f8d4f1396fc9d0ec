"""Processes of replicas, as far as this needs none."""

import subprocess
from pathlib import Path
from typing import cast

import pytest

from burnish.components.model_serving import replicas


def test_a_process_that_two_threads_see_ended_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a background check that fails because a turn of the reconciler reaped the process meanwhile."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    monkeypatch.setattr(replicas, "_children", children)

    class Ended:
        def poll(self) -> int:
            children.clear()  # as another thread does between our look and what follows it
            return 0

    children["rep_a"] = cast("subprocess.Popen[bytes]", Ended())
    assert replicas.ReplicaProcesses(tmp_path).observe("rep_a", None) == "none"
