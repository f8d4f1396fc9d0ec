"""What other packages plug in is there beside ours, and takes nothing of ours away."""

from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from burnish.components.compression.methods import methods
from burnish.components.evaluation.tasks import tasks
from burnish.components.fine_tuning.recipes import recipes
from burnish.core import plug_points
from burnish.core.plug_points import none_called, plugged


class Thing:
    def __init__(self, name: str, by: str) -> None:
        self.name, self.by = name, by


OURS = (Thing("one", "us"), Thing("two", "us"))
THREE, ANOTHER_ONE = Thing("three", "them"), Thing("one", "them")


def offered(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    points = [EntryPoint(name, f"{__name__}:{name}", "things") for name in names]
    monkeypatch.setattr(plug_points, "entry_points", lambda group: points if group == "things" else [])


def test_others_are_there_beside_ours_and_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, "THREE", "ANOTHER_ONE")
    found = plugged(Thing, "things", OURS)
    assert {name: one.by for name, one in found.items()} == {"one": "us", "two": "us", "three": "them"}
    assert set(plugged(Thing, "other things", OURS)) == {"one", "two"}


def test_what_is_of_another_kind_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, "OURS")
    with pytest.raises(TypeError, match="the entry point OURS of things is not a Thing"):
        plugged(Thing, "things", ())


def test_an_unknown_name_is_told_the_nearest_and_all_there_are() -> None:
    problem = none_called("method", "ggfu", ["gptq", "gguf"])
    assert (problem.where, problem.message) == ("spec.method", "no method is called 'ggfu'")
    assert problem.hint == "did you mean 'gguf'? there are gguf, gptq"
    assert none_called("task", "xxxx", {"a": 1, "b": 2}).hint == "there are a, b"


@pytest.mark.parametrize(
    ("found", "group"), [(methods, "burnish.methods"), (recipes, "burnish.recipes"), (tasks, "burnish.tasks")]
)
def test_each_of_our_plug_points_takes_what_others_bring(
    monkeypatch: pytest.MonkeyPatch, found: Callable[[], object], group: str
) -> None:
    point = EntryPoint("THREE", f"{__name__}:THREE", group)
    monkeypatch.setattr(plug_points, "entry_points", lambda group: [point] if group == point.group else [])
    with pytest.raises(TypeError, match=rf"the entry point THREE of {group} is not a"):
        found()
