"""Putting a configuration together from its layers, whatever they hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from burnish.core.configuration import Configuration, defaults, nested, schema, sections, value_at, values_of
from burnish.core.configuration_rules import problems_of
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.settings import Settings
from burnish.platform.configuration.file import (
    chain_of,
    check_file,
    composed,
    document_values,
    parse,
    write_values,
)
from burnish.platform.configuration.layers import (
    Layer,
    LayerName,
    Placed,
    changed_keys,
    compose,
    flatten,
    nearest,
    same,
    suggestion,
)
from burnish.platform.configuration.variables import PREFIX, process_layer
from tests.support.effort import calls_of

GOOD: dict[str, st.SearchStrategy[Any]] = {
    "gateway.per_key.burst": st.integers(1, 1 << 40),
    "gateway.per_key.requests_per_second": st.floats(0, 1e12),
    "gateway.max_in_flight": st.integers(2, 1 << 30),
    "gateway.cors_origins": st.lists(st.sampled_from(["https://a.example", "http://b:8080", "*"]), max_size=3),
    "gateway.requests_per_day": st.dictionaries(
        st.text("abc123e.-+_ :#'\"é", min_size=1), st.integers(0, 10**12), max_size=3
    ),
    "integrator.weights": st.dictionaries(
        st.text(max_size=5).filter(lambda t: t.isprintable()), st.floats(0, 100), max_size=2
    ),
    "identity.oidc.issuer": st.none() | st.sampled_from(["https://login.example.org"]),
    "identity.oidc.client_id": st.text("abc1e3~null.:-# ", max_size=8),
    "logging.level": st.sampled_from(["debug", "info", "warning", "error"]),
    "jobs.cancel_grace_seconds": st.floats(0, 1e6),
}
VALUES = st.fixed_dictionaries({}, optional=GOOD)
LAYERS = st.lists(VALUES, min_size=0, max_size=5)


def layer(values: dict[str, JsonValue], name: LayerName = LayerName.DATABASE, origin: str = "here") -> Layer:
    return Layer(name, {key: Placed(value, f"{origin}: {key}") for key, value in values.items()})


@given(LAYERS)
@settings(max_examples=25, deadline=None)
def test_the_highest_layer_that_has_a_key_wins_and_nothing_else_changes(given: list[dict[str, JsonValue]]) -> None:
    outcome = compose([layer(values, origin=str(index)) for index, values in enumerate(given)])
    assert outcome.configuration is not None, outcome.problems
    expected = values_of(defaults())
    origins: dict[str, str] = {}
    for index, values in enumerate(given):
        expected |= values
        origins |= {key: f"{index}: {key}" for key in values}
    found = values_of(outcome.configuration)
    assert changed_keys(found, expected) == []
    assert {
        key: placed.origin for key, (name, placed) in outcome.winners.items() if name == LayerName.DATABASE
    } == origins


@given(VALUES)
@settings(max_examples=25, deadline=None)
def test_written_as_yaml_values_are_read_as_the_same(values: dict[str, JsonValue]) -> None:
    read = document_values("# a comment\n" + write_values(values), "document")
    assert {key: placed.value for key, placed in read.items()} == values
    assert [json.dumps(read[key].value) for key in values] == [json.dumps(value) for value in values.values()]


@given(VALUES, VALUES, VALUES)
@settings(max_examples=15, deadline=None)
def test_environments_inherit_and_add(
    base: dict[str, JsonValue], own: dict[str, JsonValue], everywhere: dict[str, JsonValue]
) -> None:
    """Breaks with: an order in which a parent overrides its child, or the file its environments."""
    document: dict[str, Any] = {**nested(everywhere), "environments": {
        "production": nested(base), "eu": {"inherits": "production", **nested(own)}, "eu-test": {"inherits": "eu"},
    }}  # fmt: skip
    file = parse(json.dumps(document, ensure_ascii=False).encode(), "f")
    assert file.problems == ()
    assert chain_of(file.environments, "eu-test") == ("production", "eu", "eu-test")
    for name, expected in (
        ("eu-test", everywhere | base | own),
        ("production", everywhere | base),
        ("staging", everywhere),
    ):
        outcome = composed(file, name).configuration
        assert outcome is not None
        assert changed_keys(values_of(outcome), values_of(defaults()) | expected) == []


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6),
       st.sampled_from(sorted(GOOD)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_a_value_is_it_is_taken_or_told_of_with_its_place(value: Any, key: str) -> None:
    outcome = compose([layer({key: value}), layer({"logging.level": "loud"}, LayerName.PROCESS)])
    assert outcome.configuration is None
    assert "here: logging.level" in {problem.where for problem in outcome.problems}
    alone = compose([layer({key: value})])
    if alone.configuration is None:
        assert {problem.where for problem in alone.problems} <= {f"here: {key}", key, "gateway.batch_share"}
        assert set(alone.problems) <= set(outcome.problems) or not (set(alone.problems) & set(outcome.problems))
    else:
        assert same(value_at(alone.configuration, key), value)


@given(st.binary(max_size=200) | st.text("ab:{}[]-&*!|>'\"\n\t #%@`,?", max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_file_or_a_problem(content: bytes) -> None:
    found = parse(content, "f")
    if not found.problems:
        assert composed(found, "development").configuration is not None or composed(found, "development").problems


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("gateway:\n  max_inflight: 3\n", "f:2", "no key 'gateway.max_inflight'", "gateway.max_in_flight"),
        ("\n\ngatewy: {}\n", "f:3", "no key 'gatewy'", "gateway"),
        ("gateway:\n  per_key:\n    burst: five\n", "f:3", "valid integer", "by default 400"),
        ("gateway:\n  per_key:\n    burst: true\n", "f:3", "valid integer", "by default 400"),
        ("gateway:\n  per_key:\n    burst: '5'\n", "f:3", "valid integer", "by default 400"),
        ("gateway:\n  per_key:\n    burst: 0\n", "f:3", "greater than or equal to 1", "by default 400"),
        ("gateway:\n  per_key: 5\n", "f:2", "is a section", "gateway.per_key.burst"),
        ("gateway:\n  batch_share: .nan\n", "f:2", "finite", "by default 0.5"),
        ("gateway: {max_in_flight: 99999999999999999999}", "f:1", "beyond 2^63", "by default 1000"),
        ("gateway:\n  per_route:\n    /v1/models: {burst: 3, brust: 4}\n", "f:2", "per_route[/v1/models][brust]", "by default"),
        ("logging: {level: info}\nlogging.level: debug\n", "f:2", "logging.level is given twice", ""),
        ("a: [1,\nb: 2", "f:2", "is not YAML", ""),
        ("gateway:\n\tper_key: 1", "f:2", "cannot start any token", ""),
        ("logging:\n  level: info\n  level: debug\n", "f:3", "'level' is given twice", ""),
        ("a: !!python/object/apply:os.system [x]", "f:1", "is not YAML", ""),
        ("? [a]\n: 1", "f:1", "names are plain texts", ""),
        ("x: 2001-13-45", "f:1", "month must be in 1..12", ""),
        ("- 1", "f:1", "not a mapping", ""),
        ("a\0b", "f", "cannot be read", ""),
        ("environments:\n  eu: {inherits: produktion}\n", "f:2", "inherits from 'produktion'", "production"),
        ("environments:\n  a: {inherits: b}\n  b: {inherits: c}\n  c: {inherits: a}\n", "f:2", "a -> b -> c -> a", ""),
        ("environments:\n  production: {inherits: production}\n", "f:2", "production -> production", ""),
        ("environments:\n  'a b': {}\n", "f:2", "is no name", ""),
        ("environments:\n  production:\n    logging: {level: loud}\n", "f:3", "logging.level", ""),
        ("environments: 3", "f:1", "not a mapping", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_told_with_its_line(text: str, where: str, message: str, hint: str) -> None:
    problems = parse(text.encode(), "f").problems
    assert [problem.where for problem in problems] == [where], problems
    assert message in problems[0].message
    assert hint in (problems[0].hint or "")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text(
        "gateway:\n  per_key: {burst: five}\n  max_inflight: 3\nloging: {}\n"
        "environments:\n  production: {logging: {level: loud}}\n  eu: {inherits: nowhere}\n"
    )
    assert [problem.where.rpartition(":")[2] for problem in check_file(file)] == ["3", "4", "7", "2", "6"]
    file.write_text("integrator: {lease_seconds: 2}\ngateway: {max_in_flight: 1}\n")
    found = check_file(file)
    assert {problem.message.split(":")[0] for problem in found} == {
        "integrator.probe_seconds", "integrator.probe_timeout_seconds", "gateway.batch_share",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["&a [*a]", "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)])  # fmt: skip
def test_aliases_that_multiply_are_refused_in_time(content: str) -> None:
    assert "more than" in parse(content.encode(), "f").problems[0].message


def test_a_file_that_is_no_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    for path, why in ((tmp_path, "is not a file"), (tmp_path / "none", "No such file"), (tmp_path / "large", "1 MiB")):
        assert why in check_file(path)[0].message


def test_the_processes_variables_are_the_highest_layer() -> None:
    variables = {
        f"{PREFIX}gateway__max_in_flight": "7", f"{PREFIX}GATEWAY__CORS_ORIGINS": "[https://a.example]",
        f"{PREFIX}logging__level": "debug", "BURNISH_OTHER": "x",
    }  # fmt: skip
    own = process_layer(Settings(log_level="error", disk_reserve_bytes=5), variables)
    assert {key: placed.value for key, placed in own.values.items()} == {
        "gateway.max_in_flight": 7, "gateway.cors_origins": ["https://a.example"], "logging.level": "debug",
        "jobs.disk_reserve_bytes": 5,
    }  # fmt: skip
    assert own.values["logging.level"].origin == f"{PREFIX}logging__level"
    assert "BURNISH_DISK_RESERVE_BYTES" in own.values["jobs.disk_reserve_bytes"].origin
    outcome = compose([layer({"gateway.max_in_flight": 3000, "jobs.disk_reserve_bytes": 9}), own])
    assert outcome.configuration is not None
    assert (outcome.configuration.gateway.max_in_flight, outcome.configuration.jobs.disk_reserve_bytes) == (7, 5)
    with pytest.raises(InvalidRequest) as caught:
        process_layer(Settings(), {f"{PREFIX}gateway__max_inflight": "7", f"{PREFIX}logging__level": "{"})
    assert [problem.where for problem in caught.value.problems] == [
        f"{PREFIX}gateway__max_inflight", f"{PREFIX}logging__level",
    ]  # fmt: skip
    assert caught.value.problems[0].hint == "did you mean gateway.max_in_flight?"


def test_a_name_that_is_nearly_a_key_leads_to_it() -> None:
    for wrong, right in (
        ("gateway.max_inflight", "gateway.max_in_flight"), ("gatway", "gateway"), ("max_in_fligth", "gateway.max_in_flight"),
        ("log.level", "logging.level"), ("identity.oidc.secret", "identity.oidc.client_secret"),
    ):  # fmt: skip
        assert nearest(wrong, [*schema(), *sections()]) == right
    assert nearest("zzzzzz", schema()) is None


def test_keys_are_named_nested_dotted_or_mixed() -> None:
    values, problems = flatten(
        {"gateway": {"per_key": {"burst": 5}, "per_project.burst": 6}, "logging.level": "debug", "jobs": None}, ".".join
    )
    assert problems == []
    assert {key: placed.value for key, placed in values.items()} == {
        "gateway.per_key.burst": 5, "gateway.per_project.burst": 6, "logging.level": "debug",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gateway.per_route", {"v1/models": {"burst": 3}}), ("gateway.requests_per_day", {"acme": -1}),
        ("gateway.cors_origins", ["https://a.example/path"]), ("integrator.allowed_networks", ["10.0.0.1/8"]),
        ("integrator.weights", {"a": -0.5}), ("integrator.static", ["10.0.0.7:8001"]), ("integrator.dns", ["example.org"]),
        ("identity.oidc.issuer", "login.example.org"), ("identity.oidc.role_bindings", {"ml": "engineer"}),
        ("identity.oidc.role_bindings", {"ml": "default/king"}), ("integrator.forget_lost_seconds", 1),
        ("identity.oidc.client_secret", "the secret itself"), ("integrator.lease_seconds", 3),
    ],
)  # fmt: skip
def test_forms_and_fields_that_do_not_fit_each_other_are_refused_at_their_key(key: str, value: JsonValue) -> None:
    outcome = compose([layer({key: value})])
    assert outcome.configuration is None
    assert any(key.split(".")[0] in problem.message for problem in outcome.problems)
    assert "the secret itself" not in str(outcome.problems)


def test_the_defaults_are_right_and_every_key_is_described() -> None:
    assert problems_of(Configuration()) == ()
    for key, one in schema().items():
        assert one.description, key
        assert same(value_at(Configuration(), key), one.default)


def test_a_secret_as_it_is_says_how_to_keep_it() -> None:
    """Breaks with: a regular expression for an answer to somebody who gave a secret."""
    (problem,) = compose([layer({"identity.oidc.client_secret": "hunter2 hunter2"})]).problems
    assert "burnish secret set NAME" in problem.message
    assert "secret://NAME" in problem.message
    assert "pattern" not in problem.message


def test_a_section_is_no_key_and_its_keys_are_named() -> None:
    """Breaks with: did you mean gateway?, to somebody who said gateway."""
    assert suggestion("gateway.per_key") == (
        "it is a section; its keys: gateway.per_key.burst, gateway.per_key.requests_per_day, gateway.per_key.requests_per_second"
    )
    assert suggestion("gatewy") == "did you mean gateway?"


def test_of_a_section_of_names_that_there_are_not_a_few_are_told_and_looked_for() -> None:
    """Breaks with: looking for what is near each of as many names as fit into a request."""

    def flattened(count: int) -> list[FieldProblem]:
        return flatten({"gateway": {f"max_in_fligth{n}": 1 for n in range(count)}}, ".".join)[1]

    assert calls_of(lambda: flattened(5_000)) < 2 * calls_of(lambda: flattened(50))
    problems = flattened(5_000)
    assert len(problems) == 50
    assert "did you mean gateway.max_in_flight?" in str(problems[0].hint)
