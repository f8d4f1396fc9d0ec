"""Problems of specs: their places, and what is excused because it comes later."""

from typing import Literal

from pydantic import model_validator

from burnish.core.errors import FieldProblem
from burnish.core.specs.base import ArtifactRef, Spec
from burnish.infra.artifact_store.references import references_in
from burnish.platform.jobs.schemas import Kind
from burnish.platform.jobs.validation import _fields_at, _parse, _without
from tests.support.effort import calls_of


class Inner(Spec):
    rate: float = 0.1
    name: str = ""


class Outer(Spec):
    model: ArtifactRef
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    top: int = 3
    bottom: int = 1

    @model_validator(mode="after")
    def ordered(self) -> "Outer":
        if self.bottom > self.top:
            raise ValueError("bottom is above top")
        return self


KIND = Kind(Outer, Spec, "", run="somewhere:run")
MODEL = {"digest": "sha256:" + "a" * 64, "kind": "model"}


def problems(spec: dict[str, object], *unresolved: str) -> dict[str, FieldProblem]:
    return {one.where: one for one in _parse(KIND, _without(spec, unresolved), unresolved)[1]}


def test_places_are_paths_and_unknown_fields_name_the_nearest() -> None:
    found = problems({"model": MODEL, "inner": {"raet": 1}, "many": [{}, {"nam": "x"}], "mode": "fats", "tpo": 1})
    assert set(found) == {"spec.inner.raet", "spec.many.1.nam", "spec.mode", "spec.tpo"}
    assert found["spec.inner.raet"].hint == "did you mean 'rate'?"
    assert found["spec.many.1.nam"].hint == "did you mean 'name'?"
    assert found["spec.tpo"].hint == "did you mean 'top'?"
    assert found["spec.mode"].message == "input should be 'fast' or 'slow'"


def test_an_unknown_field_without_a_neighbour_lists_what_there_is() -> None:
    hint = problems({"model": MODEL, "zzzzzz": 1})["spec.zzzzzz"].hint
    assert hint == "known fields: bottom, inner, many, mode, model, top"
    assert _fields_at(Outer, ("many", 0)) == ["rate", "name"]


def test_unresolved_fields_are_not_complained_about_and_others_are() -> None:
    assert problems({}) == {"spec.model": FieldProblem(where="spec.model", message="field required")}
    assert problems({}, "model") == {}
    assert problems({"model": "${{ steps.a.result.model }}"}, "model") == {}
    assert set(problems({"top": "x"}, "model")) == {"spec.top"}
    assert problems({"model": MODEL, "inner": {"rate": "later"}}, "inner.rate") == {}
    assert problems({"model": MODEL, "many": [{"rate": "later"}]}, "many.0.rate") == {}
    assert set(problems({"nmae": 1}, "model")) == {"spec.nmae"}


def test_a_rule_over_several_fields_waits_for_those_that_come_later() -> None:
    assert problems({"model": MODEL, "top": 1, "bottom": 2})["spec"].message == "bottom is above top"
    assert problems({"model": MODEL, "bottom": 5, "top": "later"}, "top") == {}


def test_references_are_found_wherever_they_stand() -> None:
    other = {"digest": "sha256:" + "b" * 64, "kind": "dataset", "size_bytes": 3}
    found = dict(
        references_in(
            {
                "model": MODEL,
                "params": {"deep": [{"x": other}]},
                "digest": "no",
                "odd": {"digest": "sha256:zz", "kind": "model", "below": MODEL},
                "hiding": {**MODEL, "inside": {**other, "more": 1}},
            },
            "spec",
        )
    )
    assert set(found) == {"spec.model", "spec.params.deep.0.x", "spec.odd.below", "spec.hiding", "spec.hiding.inside"}
    assert found["spec.params.deep.0.x"].size_bytes == 3


def test_of_a_spec_of_fields_that_there_are_not_a_few_are_told_and_looked_for() -> None:
    """Breaks with: looking for what is near each of as many names as fit into a request."""
    many = {"model": MODEL, **{f"inner{n}": 1 for n in range(20_000)}}
    assert calls_of(lambda: problems(many)) < 10 * len(many), "what is near one name takes hundreds"
    found = problems(many)
    assert len(found) == 50
    assert found["spec.inner0"].hint == "did you mean 'inner'?"
