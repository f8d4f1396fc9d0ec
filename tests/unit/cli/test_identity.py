"""What `key`, `role`, `audit`, `whoami` and `config` print, over a server that answers from a script."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.main import main
from tests.support.scripted_server import Answer, serving

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BURNISH_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "220")


def printed(capsys: pytest.CaptureFixture[str], body: dict[str, Any], *arguments: str, status: int = 200) -> str:
    """Return what a command prints when the server answers with this."""
    headers = {"retry-after": "977"} if status == 429 else {}
    with serving(lambda _: Answer(status=status, body=body, headers=headers)) as server, pytest.raises(SystemExit):
        main((*arguments, "--url", server.url))
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def key(name: str, **more: Any) -> dict[str, Any]:
    return {"id": f"key_{name}", "name": name, "subject": "ada", "project": "ml", "scopes": None, **more}


def test_keys_say_what_they_open_and_whether_they_still_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: `until` of a day that is over; 24 permissions of a key that can only register its instance."""
    ended, lives = NOW - timedelta(seconds=90), NOW + timedelta(days=9)
    keys = [
        key("over", expires_at=ended.isoformat()), key("lives", expires_at=lives.isoformat()),
        key("echo", scopes=[f"a:{n}" for n in range(24)], component_id="echo-1", component_type="echo_metric"),
        key("gone", expires_at=ended.isoformat(), revoked_at=NOW.isoformat()), key("plain"),
    ]  # fmt: skip
    said = printed(capsys, {"data": keys, "next": None}, "key", "list")
    assert f"expired {ended:%Y-%m-%d %H:%M} UTC" in said
    assert f"until {lives:%Y-%m-%d %H:%M} UTC" in said
    assert "ml registers echo-1:echo_metric" in said
    assert "24 permissions" not in said
    assert "all of its owner's - revoked" in said
    assert "all of its owner's - in use" in said


def test_a_key_for_somebody_else_is_said_to_stay_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    made = key("x", scopes=["a:b", "c:d"], created_by="root", key="bk_x")
    assert "of ada in project ml (2 permissions, which later roles do not add to)" in printed(
        capsys, made, "key", "create"
    )
    own = key("x", scopes=["a:b"], created_by="ada", key="bk_x")
    assert "later roles" not in printed(capsys, own, "key", "create")
    instance = key("x", created_by="root", component_id="echo-1", component_type="echo", key="bk_x")
    assert "for the instance echo-1" in printed(capsys, instance, "key", "create")


def test_roles_say_who_gave_them(capsys: pytest.CaptureFixture[str]) -> None:
    role = {"id": "bnd_1", "subject": "vic", "project": "ml", "role": "viewer", "source": "given", "created_by": "ada"}
    rows = [role, {**role, "id": "bnd_2", "subject": "hedy", "source": "oidc"}]
    said = printed(capsys, {"data": rows, "next": None}, "role", "list")
    assert "vic viewer ml ada" in said
    assert "hedy viewer ml the login provider" in said


def test_the_audit_log_says_which_role_of_whom(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: `role:give bnd_01...`, of which nobody knows what it was."""
    entry = {
        "number": 7, "at": NOW.isoformat(), "actor": "ada", "project_id": "ml", "action": "role:give", "object_id": "bnd_1",
        "details": {"subject": "vic", "project": "ml", "role": "engineer"},
    }  # fmt: skip
    said = printed(capsys, {"data": [entry], "next": None}, "audit", "list")
    assert "ada role:give engineer of vic ml" in said
    broken = [{"number": 26, "what": "changed", "message": "entry 26 is not what was written"}]
    said = printed(capsys, {"ok": False, "entries": 30, "head": "0", "problems": broken}, "audit", "verify")
    assert "1 place does not hold: entry 26 is not what was written" in said


def test_who_one_is_says_what_the_key_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: roles that allow more than the key, without a word."""
    access = {"project": "ml", "roles": ["engineer"], "permissions": ["model:read"]}
    me = {"subject": "vic", "project": "ml", "credential": "key_1", "permissions": ["model:read"], "projects": [access]}
    said = printed(capsys, me, "whoami")
    assert "not with this key (key_1), though the roles allow it:" in said
    assert "workflow:run" in said.partition("allow it:")[2]
    assert "model:read" not in said.partition("allow it:")[2]


def test_a_limit_says_how_long_to_wait_by_the_servers_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "rate_limited", "detail": "the limit gateway.per_key is reached", "where": "gateway.per_key"}
    said = printed(capsys, problem, "whoami", status=429)
    assert "(rate_limited)" in said
    assert "wait 16 min 17 s" in said


def test_a_problem_names_its_key_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: `set.gateway.per_key.burst: gateway.per_key.burst: ...`."""
    where, message = "set.gateway.per_key.burst", "gateway.per_key.burst: Input should be a valid integer"
    problems = [{"where": where, "message": message}, {"where": "line 3", "message": message}]
    problem = {"code": "invalid_request", "detail": "no", "problems": problems}
    said = printed(capsys, problem, "config", "set", "gateway.per_key.burst=much", status=422)
    assert f"{where}: Input should be a valid integer" in said
    assert f"line 3: {message}" in said


def test_a_section_is_explained_by_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: no key 'gateway', did you mean gateway?"""
    setting = {"value": 1, "layer": "defaults", "origin": "", "default": 1, "change": "hot", "description": ""}
    settings = [{"key": "gateway.per_key.burst", **setting}, {"key": "jobs.retries", **setting}]
    body = {"environment": "production", "version": 0, "digest": "", "settings": settings, "restart_needed": []}
    said = printed(capsys, body, "config", "explain", "gateway")
    assert "gateway.per_key.burst 1 defaults" in said
    assert "jobs.retries" not in said
