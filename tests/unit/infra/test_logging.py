import asyncio
import base64
import io
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote

import pytest

from burnish.infra import logging as logs

SECRETS = [
    ("postgresql+asyncpg://burnish:hunter2@db:5432/x", "hunter2"),
    ("redis://:hunter2@cache/0", "hunter2"),
    ("Authorization: Bearer abc.def-ghi_jkl", "abc.def"),
    ("authorization: bearer alllowercase", "alllowercase"),
    ("Bearer s3cretvalue", "s3cret"),
    ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("the key sk-proj-abcdefghijklmnop1234 is bad", "abcdefghijklmnop"),
    ("token hf_abcdefghijklmnopqrstu", "abcdefghijkl"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ('{"api_key": "verysecret", "n": 1}', "verysecret"),
    ("password = 'verysecret'", "verysecret"),
    ("BURNISH_API_KEY=verysecret BURNISH_HOME=/x", "verysecret"),
    ("?token=verysecret&page=2", "verysecret"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpQ\nabc\n-----END RSA PRIVATE KEY-----", "MIIEpQ"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEpQ cut short", "MIIEpQ"),
]
HARMLESS = [
    "max_tokens=128 tokens: 4096 token_count=7",
    "https://user@host:8000/path?page=2",
    "http://127.0.0.1:8000/platform/health",
    "the secretary passed the test",
    "basic training at step 10",
    "sha256:" + "ab" * 32,
    "wf_01hzy3v9k2abcdefghijkm",
    "task-classification-benchmark-v2",
]


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level = root.level
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)  # other tests silence it
    yield stream
    for handler in root.handlers[:]:
        if getattr(handler, "burnish", False):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    redacted = logs.redact(f"before {text} after")
    assert secret not in redacted
    assert "***" in redacted
    assert redacted.startswith("before ")
    assert logs.redact(redacted) == redacted


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.redact(text) == text


def test_fields_with_telling_names_go_whole() -> None:
    found = logs.redact_fields({"api_key": "x", "deep": [{"db_password": "y", "tokens": 3, "note": "token=abcdef"}]})
    assert found == {"api_key": "***", "deep": [{"db_password": "***", "tokens": 3, "note": "token=***"}]}


def test_a_json_line_carries_context_extras_and_the_traceback(lines: io.StringIO) -> None:
    log = logging.getLogger("burnish.test")
    with logs.bound(trace_id="t1", project_id="p", request_id=None), logs.bound(job_id="j"):
        try:
            raise ValueError("password=hunter2")
        except ValueError:
            log.exception(
                "failed at %s", "x://u:hunter2@h", extra={"n": 3, "who": uuid.UUID(int=0), "token": "hunter2"}
            )
    log.info("outside")
    log.debug("too fine")
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert "hunter2" not in lines.getvalue()
    assert (first["level"], first["logger"], first["trace_id"], first["job_id"]) == ("error", "burnish.test", "t1", "j")
    assert (first["n"], first["who"]) == (3, str(uuid.UUID(int=0)))
    assert "request_id" not in first
    assert "ValueError" in first["exception"]
    assert first["time"].endswith("+00:00")
    assert second["message"] == "outside"
    assert "trace_id" not in second


async def test_tasks_keep_their_own_context(lines: io.StringIO) -> None:
    async def work(number: int) -> None:
        with logs.bound(trace_id=str(number)):
            await asyncio.sleep(0)
            logging.getLogger("x").info("%s", number)

    await asyncio.gather(*(work(number) for number in range(10)))
    assert all(line["message"] == line["trace_id"] for line in map(json.loads, lines.getvalue().splitlines()))


@pytest.mark.usefixtures("nothing_known")
def test_what_is_told_often_is_the_line_that_a_record_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    root, log, out = logging.getLogger(), logging.getLogger("burnish.told"), io.StringIO()
    logs.hide("what-is-secret")
    with monkeypatch.context() as patched:
        patched.setattr(root, "handlers", [])
        logs.configure("info", "json", out)

        def told(*, clean: bool = False) -> str:
            out.seek(0)
            out.truncate()
            with logs.bound(trace_id="t1"):
                logs.tell(
                    log, "GET /x?%s what-is-secret 200", {"n": 1, "who": None, "id": uuid.UUID(int=0)}, clean=clean
                )
            return out.getvalue()

        direct, unread = told(), told(clean=True)
        made: list[str] = []

        def make(*told: Any) -> logging.LogRecord:
            made.append(told[0])
            return logging.Logger.makeRecord(log, *told)

        patched.setattr(log, "makeRecord", make)
        told()
        assert not made, "no record is made while nobody else listens"
        log.addHandler(logging.NullHandler())
        recorded = told()
        assert made
        log.handlers.clear()
        logs.set_level("warning")
        assert told() == ""
    assert "what-is-secret" in unread
    assert "what-is-secret" not in direct
    lines = [json.loads(line) for line in (direct, recorded)]
    for line in lines:
        assert line.pop("time").startswith("20")
    assert lines[0] == lines[1] == {
        "level": "info", "logger": "burnish.told", "message": "GET /x?%s *** 200", "trace_id": "t1", "n": 1, "who": None,
        "id": str(uuid.UUID(int=0)),
    }  # fmt: skip


def test_nobody_writes_lines_of_their_own_into_a_terminal(lines: io.StringIO) -> None:
    """Breaks with: a path with an encoded line feed in it that looks like a record of ours, or one that clears the screen."""
    out = io.StringIO()
    logs.configure("info", "text", out)
    evil = "/x\n12:00:00 error   burnish: all is lost\x1b[2J\r\u2028\x9b1m"
    logging.getLogger("burnish.access").info("GET %s 404", evil, extra={"route": "a\nb"})
    logs.tell(logging.getLogger("burnish.access"), f"GET {evil} 404", {"request_id": "a\x1bb"})
    for line in out.getvalue().splitlines():
        assert re.match(r"\d\d:\d\d:\d\d info    access: GET /x$|    ", line), line
    assert not set(out.getvalue()) & set("\x1b\r\u2028\x9b")
    logs.configure("info", "json", lines)


def test_a_log_that_cannot_be_written_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(logging.getLogger(), "handlers", [])
        gone = io.StringIO()
        logs.configure("info", "json", gone)
        gone.close()
        logs.tell(logging.getLogger("burnish.told"), "GET / 200", {})
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "a" * 60_000, "a." * 30_000, "eyJaaaaaaaa-" * 5_000, "a://" * 15_000, "x://u:" * 10_000, "bearer " * 9_000,
        "bearer" + " " * 60_000, "token" + " " * 60_000, "token=" * 10_000, "token: bearer " * 4_000, "sk-" * 20_000,
        "-----BEGIN " * 6_000, "-----BEGIN PRIVATE KEY-----" * 2_500, "password_" * 7_000, "AKIA" * 15_000,
    ],
    ids=lambda text: repr(text[:28]),
)  # fmt: skip
def test_no_text_stops_a_process(text: str) -> None:
    """What anybody may write is looked through in proportion to its length: of the first, an earlier pattern took 19 s."""
    began = time.process_time()
    logs.redact(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("form", ["json", "text"])
def test_configuring_again_replaces(lines: io.StringIO, form: Literal["json", "text"]) -> None:
    again = io.StringIO()
    logs.configure("warning", form, again)
    logging.getLogger("uvicorn.error").warning("kept", extra={"n": 1})
    logging.getLogger("uvicorn.access").info("dropped")
    assert lines.getvalue() == ""
    assert "kept" in again.getvalue()
    assert "dropped" not in again.getvalue()
    assert len(again.getvalue().splitlines()) == 1


def test_trace_context() -> None:
    trace = logs.new_trace_id()
    with logs.bound(trace_id=trace):
        header = logs.trace_headers()["traceparent"]
        assert logs.trace_headers()["traceparent"] != header, "each call is a span of its own"
    assert logs.trace_id_of(header) == trace
    for bad in (
        None,
        "",
        "x",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{trace}-{'0' * 16}-01",
        f"ff-{trace}-{'1' * 16}-01",
    ):
        assert logs.trace_id_of(bad) is None
    for given, passed_on in (("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03"), ("04", "00")):
        assert logs.trace_of(f"00-{trace}-{'1' * 16}-{given}") == (trace, passed_on)
    assert logs.trace_of(f"cc-{trace}-{'1' * 16}-01-what-comes-later") == (trace, "01")
    assert logs.trace_id() is None
    with logs.bound(trace_id=trace):
        assert logs.trace_id() == trace
        assert logs.context() == {"trace_id": trace}


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_hidden_values", set())
    monkeypatch.setattr(logs, "_known", None)
    monkeypatch.setattr(logs, "_known_long", ())


@pytest.mark.usefixtures("nothing_known")
def test_known_values_are_taken_out_in_every_form() -> None:
    """Breaks with: a value that is looked for as it is alone, and stands there encoded."""
    value = 'pa"ss\\wörd+/='
    logs.hide(value)
    data = value.encode()
    for form in (
        value,
        repr(value),
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        quote(value),
        data.hex(),
        data.hex().upper(),
    ):
        assert logs.redact_known(f"before {form} after").count("***") == 1, form
    for before in range(4):
        for behind in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                text = encode(b"u" * before + data + b":" * behind).decode()
                assert "***" in logs.redact_known(text), (before, behind, text)
    assert logs.redact_known_fields({"a": [value, 3], value: {"b": value}}) == {"a": ["***", 3], "***": {"b": "***"}}


@pytest.mark.usefixtures("nothing_known")
def test_short_values_stay_and_long_ones_cost_little() -> None:
    logs.hide("short")
    assert logs.redact("a short text") == "a short text"
    long = "x".join(str(number) for number in range(12_000))
    start = time.monotonic()
    logs.hide(long)
    assert time.monotonic() - start < 1
    assert logs.redact(f"a {long} b") == "a *** b"
    logs.hide("-----BEGIN X-----\nQUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=\n-----END X-----\n")
    assert logs.redact("one line of it: QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=") == "one line of it: ***"
