"""What a process learns from its calls, on a clock of the test's own."""

import random
from collections.abc import AsyncIterator

from burnish.core.configuration import IntegratorConfiguration
from burnish.infra.http import Request
from burnish.platform.integrator.balancing import OfType
from burnish.platform.integrator.directory import Directory
from burnish.platform.integrator.repeating import Body, class_of, is_repeatable
from burnish.platform.integrator.routing import SILENT_UNTIL_OPEN, Routing, Try
from tests.unit.platform.integrator.test_balancing import instance


class Bench:
    """Routing over so many instances, on a clock that the test sets."""

    def __init__(self, names: str = "ab", **settings: float) -> None:
        self.settings = IntegratorConfiguration(**settings)
        self.suspects: list[str] = []
        self.now = 100.0
        self.routing = Routing(lambda: self.settings, choose=random.Random(3).random, on_suspicion=self.suspects.append)
        self.found: OfType = Directory.of(instance(name) for name in names).by_type["evaluation"]

    def choose(self, tried: str = "") -> str | None:
        one = self.routing.choose(self.found, set(), set(tried), "GET /jobs", None, self.now)
        return None if one is None else one.component_id

    def takers(self) -> set[str | None]:
        return {self.choose() for _ in range(50)}

    def begin(self, name: str) -> Try:
        one = next(one for one in self.found.known if one.component_id == name)
        return self.routing.begin(one, self.found, "GET /jobs", self.now)

    def call(self, name: str, *, fails: bool = False, seconds: float = 0.0) -> None:
        made = self.begin(name)
        self.now += seconds
        self.routing.answered(made, self.now)
        (self.routing.failed if fails else self.routing.succeeded)(made, self.now)
        self.routing.end(made)

    def refuse(self, name: str) -> None:
        made = self.begin(name)
        self.routing.refused(made, self.now)
        self.routing.end(made)

    def stay_silent(self, name: str, seconds: float = 1.0) -> None:
        made = self.begin(name)
        self.now += seconds
        self.routing.stayed_silent(made, self.now)
        self.routing.end(made)


def test_the_first_refusal_is_routed_around_and_a_trial_finds_its_return() -> None:
    bench = Bench()
    bench.refuse("a")
    assert bench.takers() == {"b"}
    assert bench.suspects == ["a"]
    bench.now += 1.1
    assert bench.routing.circuit("a", bench.now) == "half_open"
    trial = bench.begin("a")
    assert bench.takers() == {"b"}, "one trial at a time"
    bench.routing.answered(trial, bench.now)
    bench.routing.end(trial)
    assert bench.routing.circuit("a", bench.now) == "closed"
    assert bench.takers() == {"a", "b"}


def test_a_trial_that_is_broken_off_by_its_caller_does_not_close_the_door_for_ever() -> None:
    bench = Bench()
    bench.refuse("a")
    bench.now += 1.1
    hung = bench.begin("a")
    assert hung.trial
    bench.routing.end(hung)
    assert "a" in bench.takers()


def test_a_circuit_stays_open_for_longer_each_time_up_to_a_cap() -> None:
    bench = Bench()
    opened = []
    for _ in range(6):
        bench.refuse("a")
        began = bench.now
        while bench.routing.circuit("a", bench.now) == "open":
            bench.now += 0.25
        opened.append(bench.now - began)
    assert opened == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_only_one_is_tried_when_it_refused_and_spared_when_it_hangs() -> None:
    bench = Bench("a")
    bench.refuse("a")
    assert bench.choose() == "a", "a refusal costs nothing"
    bench = Bench("a")
    for _ in range(SILENT_UNTIL_OPEN):
        bench.stay_silent("a")
    assert bench.choose() is None
    bench.now += 1.1
    assert bench.choose() == "a", "half open"


def test_giving_up_makes_it_dear_and_closes_no_door() -> None:
    bench = Bench()
    for _ in range(10):
        made = bench.begin("a")
        bench.now += 1
        bench.routing.given_up(made, bench.now)
        bench.routing.end(made)
    bench.call("b", seconds=0.01)
    assert bench.takers() == {"b"}
    assert bench.choose(tried="b") == "a"
    assert set(bench.suspects) == {"a"}


def test_a_slow_one_is_given_up_only_for_one_that_takes_calls_and_within_the_budget() -> None:
    bench = Bench()

    def is_worth_it() -> bool:
        return bench.routing.is_worth_a_retry("evaluation", {"b"}, bench.now)

    bench.begin("a")
    assert is_worth_it()
    bench.refuse("b")
    assert not is_worth_it(), "the other is known to be away"
    bench.now += 5
    assert is_worth_it(), "it may be back"
    while bench.routing.may_retry("evaluation", bench.now):
        pass
    assert not is_worth_it(), "there is no retry left: better late than never"


def test_an_answer_that_does_not_come_counts_while_it_is_waited_for() -> None:
    bench = Bench()
    for name in "ab":
        bench.call(name, seconds=0.05)
    hung = bench.begin("a")
    bench.now += 0.2
    bench.call("b", seconds=0.05)
    assert bench.takers() == {"b"}
    assert not bench.suspects
    bench.now += 3
    bench.call("b", seconds=0.05)
    assert bench.takers() == {"b"}
    assert set(bench.suspects) == {"a"}, "it is looked at before the call ends"
    bench.routing.answered(hung, bench.now)
    bench.routing.end(hung)
    assert not hung.record.unanswered


def test_a_slow_call_says_nothing_while_others_are_answered() -> None:
    bench = Bench()
    for _ in range(20):
        slow = bench.begin("a")
        bench.now += 1
        bench.call("a")
        bench.routing.stayed_silent(slow, bench.now)
        bench.routing.end(slow)
    assert bench.routing.circuit("a", bench.now) == "closed"
    assert not bench.suspects


def test_failing_calls_eject_for_longer_each_time_and_never_more_than_half() -> None:
    bench = Bench("abc", ejection_seconds=10)
    for _ in range(5):
        bench.call("a", fails=True)
    assert bench.takers() == {"b", "c"}
    for _ in range(5):
        bench.call("b", fails=True)
    assert bench.takers() == {"b", "c"}, "of three at most one is left out"
    bench.now += 10.1
    assert "a" in bench.takers()
    for _ in range(5):
        bench.call("a", fails=True)
    bench.now += 10.1
    assert "a" not in bench.takers(), "twenty seconds the second time"
    bench.now += 10
    assert "a" in bench.takers()


def test_few_failures_among_many_eject_nobody_and_the_only_one_is_never_ejected() -> None:
    bench = Bench()
    for n in range(100):
        bench.call("a", fails=n % 3 == 0)
    assert bench.takers() == {"a", "b"}
    alone = Bench("a")
    for _ in range(50):
        alone.call("a", fails=True)
    assert alone.choose() == "a"


def test_retries_are_a_share_of_the_requests_with_a_few_for_free() -> None:
    bench = Bench(retry_budget_ratio=0.2)
    granted = sum(bench.routing.may_retry("evaluation", bench.now) for _ in range(100))
    assert granted == 10
    for _ in range(500):
        bench.call("a")
    assert sum(bench.routing.may_retry("evaluation", bench.now) for _ in range(500)) == 90
    bench.now += 11
    assert bench.routing.may_retry("evaluation", bench.now), "only the last ten seconds count"
    none = Bench(retry_budget_ratio=0.0)
    assert not none.routing.may_retry("evaluation", none.now)


def test_what_is_well_again_is_not_held_to_what_was() -> None:
    bench = Bench()
    for _ in range(SILENT_UNTIL_OPEN):
        bench.stay_silent("a", 3)
    assert bench.takers() == {"b"}
    bench.routing.forgive("a")
    bench.call("b", seconds=0.01)
    assert bench.takers() == {"a", "b"}


def test_a_slow_one_is_tried_again_after_a_while() -> None:
    bench = Bench()
    bench.call("a", seconds=2.0)
    for _ in range(20):
        bench.call("b", seconds=0.02)
    assert bench.takers() == {"b"}
    for _ in range(60):
        bench.now += 1
        bench.call("b", seconds=0.02)
    assert "a" in bench.takers()


def test_only_instances_that_are_gone_and_idle_are_forgotten() -> None:
    bench = Bench("abc")
    for name in "abc":
        bench.call(name)
    open_call = bench.begin("b")
    bench.routing.forget_all_but(frozenset({"a"}))
    assert {name for name, _ in bench.routing.records()} == {"a", "b"}
    bench.routing.end(open_call)
    bench.routing.forget_all_but(frozenset({"a"}))
    assert {name for name, _ in bench.routing.records()} == {"a"}


def test_what_may_be_sent_again() -> None:
    def may(method: str, path: str, **headers: str) -> bool:
        return is_repeatable(
            Request(method, path, {name.replace("_", "-").lower(): value for name, value in headers.items()})
        )

    assert all(may(method, "/platform/x") for method in ("GET", "HEAD", "PUT", "DELETE", "get"))
    assert all(
        may("POST", path) for path in ("/jobs", "/jobs?x=1", "/jobs/validate", "/jobs/job_1/cancel", "/jobs/j/pause")
    )
    assert not any(
        may("POST", path) for path in ("/v1/chat/completions", "/jobs/a/b/cancel", "/platform/jobs", "/jobsx")
    )
    assert may("POST", "/platform/x", Idempotency_Key="k")
    assert not may("PATCH", "/platform/x")


def test_classes_of_calls_are_few() -> None:
    assert class_of(Request("GET", "/jobs/job_1/events?x")) == class_of(Request("GET", "/jobs/job_2")) == "GET /jobs"
    assert class_of(Request("POST", "/v1/chat/completions")) == "POST /v1/chat"
    assert class_of(Request("GET", "/platform/datasets/ds_1")) == "GET /platform/datasets"
    assert class_of(Request("GET", "/")) == "GET /"


async def test_a_streamed_body_is_fresh_until_it_is_begun() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    body = Body.of(Request("POST", "/x", body=chunks()))
    assert body.is_fresh
    assert not isinstance(body.content, bytes)
    assert [chunk async for chunk in body.content] == [b"1", b"2"]
    assert not body.is_fresh
    assert Body.of(Request("POST", "/x", body=b"abc")).is_fresh


def test_one_that_says_nothing_loses_the_choice_while_its_first_call_still_waits() -> None:
    """A call that may not be repeated waits to its end: what it teaches until then is how long it has waited."""
    bench = Bench()
    for name in "ababab":
        bench.call(name, seconds=0.05)
    hung = bench.begin("a")
    bench.now += 0.5
    for _ in range(5):
        bench.call("b", seconds=0.05)
    assert bench.takers() == {"b"}
    assert bench.suspects == []
    bench.now += bench.settings.probe_timeout_seconds
    assert bench.takers() == {"b"}
    assert "a" in bench.suspects
    bench.routing.answered(hung, bench.now)
    bench.routing.end(hung)
    bench.now += 120
    assert bench.takers() == {"a", "b"}


def test_a_long_call_is_no_silence_while_others_are_answered() -> None:
    bench = Bench()
    for name in "ababab":
        bench.call(name, seconds=0.05)
    bench.begin("a")  # writes a novel
    for _ in range(40):
        bench.call("a", seconds=0.05)
        bench.call("b", seconds=0.05)
    bench.begin("b")
    assert "a" in bench.takers()
    assert bench.suspects == []
