"""Reading definitions and expressions: what is wrong is told with place and mend; what is hostile is refused."""

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import BurnishError, InvalidRequest, TooLarge
from burnish.platform.workflow.definition import read
from burnish.platform.workflow.expressions import ExpressionError, condition, evaluate, parse, references, resolve
from burnish.platform.workflow.library import definitions
from burnish.platform.workflow.reading import check_value, read_text

SCOPE = {
    "parameters": {"rank": 8, "name": "x", "flag": False, "none": None, "list": [1, {"a": 2}]},
    "steps": {"train": {"result": {"loss": 0.5, "adapter": {"digest": "d"}}, "state": "succeeded"},
              "skipped": {"result": None, "state": "skipped"}},
    "execution": {"id": "wf_1", "project_id": "default"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("${{ parameters.rank }}", 8),
        ("r${{ parameters.rank }}-${{parameters.name}}", "r8-x"),
        ("${{ steps.train.result.adapter }}", {"digest": "d"}),
        ("a ${{ steps.train.result.adapter }}", 'a {"digest":"d"}'),
        ("${{ steps.skipped.result.anything.below }}", None),
        ("${{ parameters.list[1].a }}", 2),
        ('${{ parameters["name"] }}', "x"),
        ("${{ parameters.rank > 4 && parameters.name == 'x' }}", True),
        ("${{ parameters.none || parameters.rank }}", 8),
        ("${{ !parameters.flag }}", True),
        ("${{ !(parameters.rank == 8) || steps.train.state != 'succeeded' }}", False),
        ("${{ 1 == true }}", False),
        ("${{ '}}' }}", "}}"),
        ("${{ -1.5e1 }}", -15.0),
        ("plain", "plain"),
        ("$ {{ x }}", "$ {{ x }}"),
    ],
)
def test_expressions(text: str, wanted: Any) -> None:
    found = resolve(text, SCOPE)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${{ parameters.rnk }}", "leads nowhere"), ("${{ parameters.rank < 'x' }}", "cannot compare"),
        ("${{ parameters.list[9] }}", "leads nowhere"), ("${{ }}", "nothing stands"), ("${{ 1 + 2 }}", "cannot read"),
        ("${{ (1 }}", "missing"), ("${{ a b }}", "not expected"), ("${{ __import__('os') }}", "not expected"),
        ("${{ parameters.rank", "not closed"), ("${{ " + "(" * 60 + "1" + ")" * 60 + " }}", "levels"),
        ("${{ " + "1 && " * 900 + "1 }}", "longer"), ("${{ a[-1] }}", "cannot follow"),
    ],
)  # fmt: skip
def test_bad_expressions_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words):
        _read_and_resolve(text)


def _read_and_resolve(text: str) -> None:
    list(references(text))
    resolve(text, SCOPE)


@given(st.text(max_size=40))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    with suppress(ExpressionError):
        evaluate(parse(text), SCOPE)


def test_when_takes_an_expression_with_or_without_braces() -> None:
    assert condition("parameters.rank == 8", SCOPE)
    assert condition("${{ parameters.rank == 8 }}", SCOPE)
    assert not condition(False, SCOPE)


def test_yaml_means_what_it_says() -> None:
    found = read_text("on: [yes, no, true, 010, 1:30, 2024-01-01, 1e3, .5, ~, '8']")
    assert found == {"on": ["yes", "no", True, 10, "1:30", "2024-01-01", 1000.0, 0.5, None, "8"]}
    assert read_text("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{b}: &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases"), ("a: &a [*a]", "itself"), ("[" * 5_000, "nest"), ("a: 1\na: 2", "twice"), ("- 1", "mapping"),
        ("a: !!python/object/apply:os.system [x]", "tag"), ("a: 1\n---\nb: 2", "second document"), ("a: [1", "not YAML"),
        ("a: {<<: {b: 1}}", "merge"), ("a: !x 1", "tag"), ("? [1]\n: 2", "key"), ("", "mapping"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_text(text)
    assert caught.value.problems


def test_too_long_and_too_deep_are_refused() -> None:
    with pytest.raises(TooLarge):
        read_text("a: " + "x" * 300_000)
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested"):
        check_value(deep)
    with pytest.raises(InvalidRequest, match="more than"):
        check_value(list(range(30_000)))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_json_is_a_definition_or_a_typed_error(value: Any) -> None:
    for steps in (value, {"a": value}, [value], {"a": {"kind": "noop", "with": {"x": value}, "foreach": value}}):
        with suppress(BurnishError):
            read({"name": "x", "steps": steps})


def problems_of(source: str) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        read(source)
    return {problem.where: f"{problem.message} | {problem.hint}" for problem in caught.value.problems}


_MANY = {f"step_number_{number}": {"kind": "noop"} for number in range(190)}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"with": {"value": "${{ " * 60_000}}, "is not closed"),
        ({"with": {"value": "${{ '" * 50_000}}, "is not closed"),
        ({"with": {"value": ['${{ "\\' * 20] * 2_000}}, "is not closed"),
        ({"when": "${{ " * 60_000}, "longer than"),
        ({"with": {"value": [f"${{{{steps.stepnumer_{number}.x}}}}" for number in range(7_000)]}}, "no step"),
        ({f"nee{number}": 1 for number in range(7_000)}, "no field"),
        ({"with": {"value": "a" * 300_000}}, "longer than 256 KiB"),
        ({"with": {"b" * 300_000: 1}}, "longer than 256 KiB"),
    ],
    ids=["open", "open text", "open texts", "open when", "references", "fields", "long", "long name"],
)
def test_no_definition_keeps_the_server_busy(step: dict[str, Any], words: str) -> None:
    """All of this took from half a minute to ten; the event loop stands still meanwhile."""
    began = time.process_time()
    with pytest.raises(BurnishError, match=words) as caught:
        read({"name": "x", "steps": {**_MANY, "last": {"kind": "noop", **step}}})
    assert time.process_time() - began < 3
    assert len(caught.value.problems) <= 50


def test_unknown_needs_and_long_aliases_are_bounded() -> None:
    steps = {name: {"kind": "noop", "needs": [f"stepnumer_{n}" for n in range(95)]} for name in _MANY}
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="no step 'stepnumer_0'"):
        read({"name": "x", "steps": steps})
    with pytest.raises(TooLarge):
        read("{name: x, steps: {z: {kind: noop, with: {value: [&a '" + "a" * 100_000 + "', " + "*a, " * 5_000 + "]}}}}")
    assert time.process_time() - began < 3


def test_expressions_end_where_they_always_did() -> None:
    text = "${{ '}}' == \"}}\" }} and ${{ parameters.rank }}} and ${{ 1"
    assert resolve(text, SCOPE) == "true and 8} and ${{ 1"
    assert resolve("${{ parameters.name }}${{ parameters.rank }}", SCOPE) == "x8"
    assert resolve("a ${{ 'it is }} open", SCOPE) == "a ${{ 'it is }} open"


def test_all_that_the_text_shows_is_told_at_once() -> None:
    found = problems_of(
        "name: x\nstps: 1\nsteps:\n  a: {knd: noop, retry: {attemps: 3}, priority: 1000}\n  b!: {kind: noop}"
    )
    assert "did you mean `steps`?" in found["stps"] if "stps" in found else "b!" in str(found)
    found = problems_of("name: x\nstps: 1\nsteps:\n  a: {knd: noop, retry: {attemps: 3}, priority: 1000}")
    assert set(found) == {"stps", "steps.a.kind", "steps.a.knd", "steps.a.retry.attemps", "steps.a.priority"}
    assert "did you mean `kind`?" in found["steps.a.knd"]
    assert "did you mean `attempts`?" in found["steps.a.retry.attemps"]


def test_references_are_checked_against_what_there_is() -> None:
    found = problems_of("""
name: x
parameters: {rank: {type: integer}}
steps:
  train: {kind: noop, needs: [impot]}
  import: {kind: noop, with: {a: "${{ parameters.rnk }}", b: "${{ steps.trian.result }}", c: ["${{ steps.train }}"], d: "${{ item }}", e: "${{ paramters.rank }}", f: "${{ (1 }}"}}
""")
    assert "did you mean `import`?" in found["steps.train.needs[0]"]
    assert "did you mean `rank`?" in found["steps.import.with.a"]
    assert "did you mean `train`?" in found["steps.import.with.b"]
    assert "neither a result nor a state" in found["steps.import.with.c[0]"]
    assert "foreach" in found["steps.import.with.d"]
    assert "did you mean `parameters`?" in found["steps.import.with.e"]
    assert "missing" in found["steps.import.with.f"]


@pytest.mark.parametrize(
    "second", ["needs: [c]", 'with: {value: "${{ steps.c.result }}"}', "when: 'steps.c.state == \"failed\"'"]
)
def test_a_cycle_is_named(second: str) -> None:
    found = problems_of(
        f"{{name: x, steps: {{a: {{kind: noop, {second}}}, b: {{kind: noop, needs: [a]}}, c: {{kind: noop, needs: [b]}}}}}}"
    )
    assert "a needs c needs b needs a" in next(iter(found.values()))


def test_steps_may_be_a_list_and_references_are_needs() -> None:
    definition = read(
        "{name: x, steps: [{name: b, kind: noop, with: {v: '${{ steps.a.result }}'}}, {name: a, kind: noop}]}"
    )
    assert definition.order == ("a", "b")
    assert definition.descendants(["a"]) == {"a", "b"}
    assert "needs a `name`" in str(problems_of("{name: x, steps: [{kind: noop}]}"))


def test_the_shipped_definitions_read() -> None:
    assert {"noop", "train-optimize-deploy", "deploy-model"} <= set(definitions())
    whole = definitions()["train-optimize-deploy"]
    assert (
        whole.order.index("gate")
        < whole.order.index("register")
        < whole.order.index("deploy")
        < whole.order.index("promote")
    )
