"""``burnish config`` and ``burnish secret``: what they send, and what they print."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.main import main
from burnish.client import asynchronous, synchronous
from tests.support.scripted_server import Answer, Asked, serving

CHANGED = {
    "environment": "production", "version": 8, "previous": 7, "restart_needed": ["jobs.cancel_grace_seconds"],
    "overridden": ["logging.level"],
    "changed": [
        {"key": "gateway.per_key.burst", "old": 800, "new": 1200},
        {"key": "jobs.cancel_grace_seconds", "old": None, "new": 3, "old_given": False},
        {"key": "identity.oidc.client_secret", "hidden": True},
    ],
}  # fmt: skip
SECRET = {"name": "oidc", "reference": "secret://oidc", "version": 1, "key": 1, "author": "alice",
          "created_at": "2026-11-24T12:00:00Z", "updated_at": "2026-11-24T12:00:00Z"}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_set_sends_yaml_values_and_says_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: Answer(body=CHANGED)) as server:
        status, out, _ = run(
            capsys, "config", "set", "gateway.per_key.burst=1200", "integrator.weights={a: 0.5}", "logging.level=debug",
            "--reason", "more", "-e", "production", "--expected-version", "7", "--url", server.url,
        )  # fmt: skip
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("PATCH", "/platform/configuration")
    assert asked.json() == {
        "set": {"gateway.per_key.burst": 1200, "integrator.weights": {"a": 0.5}, "logging.level": "debug"}, "unset": [],
        "environment": "production", "reason": "more", "expected_version": 7, "dry_run": False,
    }  # fmt: skip
    assert status == 0
    for line in (
        "gateway.per_key.burst: 800 -> 1200", "jobs.cancel_grace_seconds: (not set) -> 3", "(hidden) -> (hidden)",
        "restart needed for jobs.cancel_grace_seconds", "overridden logging.level", "production is at version 8",
    ):  # fmt: skip
        assert line in out


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["config", "unset", "logging"], "PATCH", "/platform/configuration", {"set": {}, "unset": ["logging"], "reason": "", "dry_run": False}),
        (["config", "rollback", "6", "--dry-run"], "POST", "/platform/configuration/rollback", {"to": 6, "reason": "", "dry_run": True}),
    ],
)  # fmt: skip
def test_other_changes(
    arguments: list[str], method: str, path: str, body: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: Answer(body={**CHANGED, "dry_run": True, "changed": []})) as server:
        status, out, _ = run(capsys, *arguments, "--url", server.url)
    assert (status, server.asked[0].method, server.asked[0].path, server.asked[0].json()) == (0, method, path, body)
    assert "nothing changes" in out


def test_status_fails_while_a_process_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    process = {"process": "a-1", "environment": "production", "state": "refuses", "versions": {"production": 6},
               "newest": {"production": 7}, "problems": [{"where": "pool", "message": "there is no room"}]}  # fmt: skip
    with serving(lambda _: Answer(body={"data": [process]})) as server:
        status, out, _ = run(capsys, "config", "status", "--url", server.url)
    assert (status, "a-1: pool: there is no room" in out) == (1, True)


def test_get_prints_the_value_alone_and_never_a_hidden_one(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {"key": "k", "environment": "e", "value": [1, "x"], "layers": []}
    with serving(lambda _: Answer(body=found)) as server:
        assert run(capsys, "config", "get", "k", "--url", server.url)[:2] == (0, '[1, "x"]\n')
        found |= {"value": None, "hidden": True}
        status, out, err = run(capsys, "config", "get", "k", "--url", server.url)
    assert (status, out, "only administrators" in err) == (1, "", True)


def test_a_file_is_checked_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text("gateway: {per_key: {burst: 5}}\n")
    assert run(capsys, "config", "check", str(file))[0] == 0
    file.write_text("gateway:\n  per_key: {brust: 5}\n")
    status, _, err = run(capsys, "config", "check", str(file), "--json")
    assert status == 1
    problem = json.loads(err)["error"]["problems"][0]
    assert (problem["where"], problem["hint"]) == (f"{file}:2", "did you mean gateway.per_key.burst?")


@pytest.mark.parametrize(
    ("stdin", "sent"),
    [("value\n", "value"), ("two\nlines\n", "two\nlines"), (" x \r\n", " x "), ("\n", None), ("", None)],
)
def test_a_secrets_value_comes_from_stdin(
    stdin: str, sent: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with serving(lambda _: Answer(body=SECRET)) as server:
        status, out, err = run(capsys, "secret", "set", "oidc", "--url", server.url)
    assert [asked.json()["value"] for asked in server.asked] == ([] if sent is None else [sent])
    assert status == (2 if sent is None else 0)
    assert sent is None or sent not in out + err


def test_a_secrets_value_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    def never(asked: Asked) -> Answer:
        raise AssertionError(asked.path)

    with serving(never) as server:
        assert run(capsys, "secret", "set", "oidc", "value", "--url", server.url)[0] == 2
        assert run(capsys, "secret", "rewrap", "--url", server.url)[0] == 2
        assert run(capsys, "secret", "rewrap", "--finish", "--new-key-file", "x", "--url", server.url)[0] == 2


def test_both_clients_offer_the_same() -> None:
    for name in ("Configuration", "Secrets"):
        one, other = getattr(synchronous, name), getattr(asynchronous, f"Async{name}")
        assert {n for n in vars(one) if n[0] != "_"} == {n for n in vars(other) if n[0] != "_"}
