"""What a process takes from its environment."""

import os
from pathlib import Path

import pytest

from burnish.client import address
from burnish.core.settings import NODE_FILE, Settings
from burnish.infra.home import write_once


def test_a_home_is_absolute_wherever_it_was_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas and hosts are started in other folders.

    Breaks with: a path that is kept as it was given, a client that looks elsewhere than the server.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for given, meant in (("h", "h"), ("~/b", "person/b"), ("link", "elsewhere")):
        assert Settings(home=Path(given)).home == tmp_path / meant
        assert address.home(Path(given)) == tmp_path / meant
        monkeypatch.setenv("BURNISH_HOME", given)
        assert Settings().home == address.home() == tmp_path / meant
    monkeypatch.delenv("BURNISH_HOME")
    assert Settings().home == address.home() == tmp_path / "person" / ".burnish"
    assert Settings().run_dir.is_absolute()


def test_a_home_keeps_its_nodes_name_when_the_machines_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a node that is the host name of the moment, whose jobs and deployments then are nobody's."""
    monkeypatch.delenv("BURNISH_NODE", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "before")
    first = Settings(home=tmp_path)
    assert first.node == "before"
    write_once(tmp_path / NODE_FILE, first.node.encode())
    monkeypatch.setattr("socket.gethostname", lambda: "after")
    second = Settings(home=tmp_path)
    assert second.node == "before"
    assert Settings(home=tmp_path, node="named").node == "named"
    assert Settings(home=tmp_path / "other").node == "after"
    assert os.listdir(tmp_path) == [NODE_FILE]
