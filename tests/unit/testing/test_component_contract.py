"""The conformance kit: a component that keeps the protocol passes, and one that breaks a promise fails at that point."""

import asyncio

import pytest

from burnish.cli.conformance import Report, run
from burnish.client.errors import NotReachable
from burnish.core.errors import InvalidRequest
from burnish.platform.identity import CallerTokens
from burnish.testing import component_contract
from burnish.testing.component_contract import POINTS, Finding, check
from burnish.testing.component_probe import Example, Probe, instance_of, tokens_of
from tests.support.asgi_server import served
from tests.support.plain_component import PlainComponent

KEY = b"k" * 32

FAULTS = {
    "health slow": {"health", "still-healthy"},
    "health status": {"health", "health-told", "still-healthy"},
    "health late garbage": {"still-healthy"},
    "health names": {"health-told"},
    "describe garbage": {"describe"},
    "describe version": {"describe"},
    "describe endless": {"describe"},
    "describe huge": {"describe"},
    "schema": {"schemas"},
    "schema of nothing": {"schemas"},
    "schema deep": {"schemas"},
    "permission": {"names-and-routes"},
    "name": {"names-and-routes"},
    "route": {"names-and-routes"},
    "no token": {"token-required"},
    "unsigned token": {"token-garbage"},
    "foreign token": {"token-foreign"},
    "refuses all tokens": {"token-accepted"},
    "expired token": {"token-expired"},
    "other audience": {"token-audience"},
    "other instance": {"token-instance"},
    "unknown is empty": {"unknown-job"},
    "errors": {"errors"},
    "trace": {"trace"},
    "unknown kind passes": {"validate-finds-problems"},
    "unplaced problems": {"validate-finds-problems"},
    "validation accepts": {"validate-accepts-nothing"},
    "no defaults": {"validate-accepts-nothing"},
    "partial": {"validate-partial"},
    "unknown fields": {"unknown-fields"},
    "accepts anything": {"submit-refuses"},
    "refused but kept": {"submit-refuses"},
    "odd ids": {"submit-needs-an-id"},
    "no result": {"ends"},
    "jobs fail": {"jobs-succeed"},
    "starts again": {"same-job"},
    "no conflict": {"conflict"},
    "any project": {"own-project"},
    "any caller": {"own-project"},
    "buffered events": {"events-stream"},
    "events type": {"events-stream"},
    "stream ends early": {"events-end"},
    "no resume": {"events-resume"},
    "no tombstone": {"tombstone"},
    "ignores cancel": {"cancel"},
    "no second cancel": {"cancel"},
    "deadline": {"deadline"},
    "malformed": {"malformed"},
    "oversize": {"oversize"},
}  # fmt: skip
"""What a component does wrong, and the points at which it is found."""


async def failing(component: PlainComponent, **probe: object) -> set[str]:
    tokens = CallerTokens(KEY)
    async with served(component.app) as url:
        found = await check(Probe(url, tokens, **probe))  # type: ignore[arg-type]
    assert [one.point for one in found] == [point.name for point in POINTS]
    for one in found:
        assert one.verdict != "fail" or (one.seen and one.expected), one
    return {one.point for one in found if one.verdict == "fail"}


async def test_a_component_that_keeps_the_protocol_passes_every_point() -> None:
    component = PlainComponent(CallerTokens(KEY).public_jwks())
    async with served(component.app) as url:
        found = await check(Probe(url, CallerTokens(KEY)))
    assert {one.point: one.verdict for one in found} == {point.name: "pass" for point in POINTS}


async def test_a_broken_promise_fails_at_its_point_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component_contract, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(component_contract, "FAST_SECONDS", 2.0)
    monkeypatch.setattr(component_contract, "_QUICK_JOB_SECONDS", 1.0)
    monkeypatch.setattr(PlainComponent, "slow_seconds", 2.5)
    at_once = asyncio.Semaphore(8)  # most of the time is waiting

    async def broken(fault: str) -> set[str]:
        async with at_once:
            return await failing(PlainComponent(CallerTokens(KEY).public_jwks(), fault))

    found = dict(zip(FAULTS, await asyncio.gather(*map(broken, FAULTS)), strict=True))
    assert found == FAULTS


def test_every_point_has_a_component_that_fails_there() -> None:
    assert {point.name for point in POINTS} == set().union(*FAULTS.values())


async def test_without_a_key_what_needs_one_is_said_not_to_be_looked_at() -> None:
    component = PlainComponent(CallerTokens(KEY).public_jwks())
    async with served(component.app) as url:
        found = {one.point: one for one in await check(Probe(url))}
    assert found["token-required"].verdict == "pass"
    assert found["conflict"].verdict == "not applicable"
    assert "--key-file" in found["conflict"].seen
    assert not component.jobs


async def test_how_the_jobs_of_each_kind_ended_is_told() -> None:
    """Breaks with: a component that keeps every point, while each of its jobs fails."""
    component = PlainComponent(CallerTokens(KEY).public_jwks(), "jobs fail")
    async with served(component.app) as url:
        found = {one.point: one for one in await check(Probe(url, CallerTokens(KEY)))}
        given = {
            one.point: one for one in await check(Probe(url, CallerTokens(KEY), [Example("shout", {"text": "mine"})]))
        }
    assert found["jobs-succeed"].seen == "shout: failed (hoarse: no voice left)"
    assert "--job" in found["jobs-succeed"].expected
    assert given["jobs-succeed"].verdict == "fail"
    report = Report(
        "http://x",
        [Finding("a", "A", "pass", "shout: succeeded"), *[Finding(n, n, "not applicable", "no key") for n in "bcd"]],
    )
    lines = list(report.lines())
    assert "       seen:     shout: succeeded" in lines
    assert sum("no key" in line for line in lines) == 1, "a reason is said once"
    assert [line[:4] for line in lines].count("-   ") == 3


def test_nobody_there_is_told_as_such() -> None:
    """Breaks with: a verdict on a component that nobody could reach."""
    with pytest.raises(NotReachable, match="cannot be reached"):
        run("http://127.0.0.1:9", None, [])


async def test_nobody_there_is_a_failure_not_a_crash() -> None:
    found = await check(Probe("http://127.0.0.1:9", CallerTokens(KEY)))
    assert {one.point for one in found if one.verdict == "fail"} == {"health", "describe", "still-healthy"}


async def test_a_job_that_the_author_gave_is_used_and_one_that_is_refused_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    component = PlainComponent(CallerTokens(KEY).public_jwks())
    assert await failing(component, examples=[Example("shout", {"text": "from the author"})]) == set()
    assert any(job.spec == {"text": "from the author"} for job in component.jobs.values())
    probe = [Example("shout", {"txet": "x"})]
    async with served(component.app) as url:
        found = {one.point: one for one in await check(Probe(url, CallerTokens(KEY), probe))}
    assert found["same-job"].verdict == "not applicable"
    assert "accepts none of the jobs" in found["same-job"].seen


def test_small_objects_are_made_of_schemas() -> None:
    schema = {
        "type": "object", "required": ["a", "b", "c", "d", "e", "f"],
        "properties": {
            "a": {"type": "integer", "minimum": 3}, "b": {"$ref": "#/$defs/B"}, "c": {"enum": ["x", "y"]},
            "d": {"anyOf": [{"type": "null"}]}, "e": {"type": "array", "minItems": 1, "items": {"type": "boolean"}},
            "f": {"type": "string", "minLength": 9}, "g": {"type": "string"},
        },
        "$defs": {"B": {"type": "object", "required": ["x"], "properties": {"x": {"default": 5}}}},
    }  # fmt: skip
    assert instance_of(schema) == {"a": 3, "b": {"x": 5}, "c": "x", "d": None, "e": [False], "f": "x" * 9}
    assert instance_of({"$ref": "#"}) == {}


def test_a_short_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="32 bytes"):
        tokens_of(b"short")
