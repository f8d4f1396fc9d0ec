"""``burnish login`` and what follows it, as real processes: a server, a provider, a scripted browser, the command line."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.support.command_line import burnish
from tests.support.oidc import Browser, Provider
from tests.support.server import Server, wait_for
from tests.support.site import Site

ROOT = Path(__file__).parents[2]
BROWSER = f"{shlex.quote(sys.executable)} -m tests.support.browser"


class Shell:
    """A person's terminal: an environment, a configuration folder."""

    def __init__(self, url: str, config: Path) -> None:
        self.config = config / "burnish" / "credentials.json"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")},
            "XDG_CONFIG_HOME": str(config), "BURNISH_URL": url, "BROWSER": f"{BROWSER} ada %s",
        }  # fmt: skip

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "burnish.cli", *arguments], env={**self.environment, **environment}, cwd=ROOT,
            input=stdin, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def json(self, *arguments: str, **environment: str) -> Any:
        done = self.run(*arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def kept(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.config.read_text())["servers"]
        return found


class Here(Shell):
    """The same in this process, where it does not matter that it is one of its own."""

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        return burnish(*arguments, environment={**self.environment, **environment}, stdin=stdin)


@pytest.fixture
def shell(site: Site, provider: Provider, tmp_path: Path) -> Shell:
    return Shell(site.url, tmp_path / "config")


@pytest.fixture
def here(site: Site, tmp_path: Path) -> Shell:
    return Here(site.url, tmp_path / "config")


def test_login_by_the_browser_work_and_logout(site: Site, shell: Shell, here: Shell) -> None:
    before = here.run("whoami")
    assert before.returncode == 1
    assert "burnish login" in before.stderr

    done = shell.run("login")
    assert done.returncode == 0, done.stderr
    assert "Logged in" in done.stdout, "the browser's page"
    assert f"logged in to {site.url} as ada@example.org until" in done.stdout
    kept = shell.kept()[site.url]
    assert stat.S_IMODE(shell.config.stat().st_mode) == 0o600
    assert kept["key"] not in done.stdout + done.stderr
    me = here.json("whoami")
    assert (me["subject"], me["credential"]) == ("ada@example.org", kept["key_id"])
    assert here.json("list")["data"] == []
    assert [one["name"] for one in here.json("key", "list")["data"]][-1].startswith("burnish login on ")

    done = shell.run("logout")
    assert done.returncode == 0, done.stderr
    assert shell.kept() == {}
    wait_for(
        lambda: site.ask("GET", "/platform/identity/me", key=kept["key"]).status_code == 401, 2, "the key is revoked"
    )
    assert "no key is kept" in here.run("logout").stdout


def test_who_refuses_is_told_in_the_terminal(provider: Provider, shell: Shell, site: Site) -> None:
    provider.set_user("gone", email="gone@example.org", email_verified=True)
    assert shell.run("login", BROWSER=f"{BROWSER} gone %s").returncode == 0
    assert site.ask("POST", "/platform/identity/users/gone@example.org/disable").status_code == 200
    done = shell.run("login", BROWSER=f"{BROWSER} gone %s")
    assert done.returncode == 1
    assert "gone@example.org was disabled" in done.stderr


def test_nobody_logs_in_and_the_command_ends(shell: Shell) -> None:
    done = shell.run("login", "--no-browser", "--timeout", "1")
    assert done.returncode == 1
    assert "Open this address in a browser on this machine: http://127.0.0.1" in done.stderr
    assert "--key -" in done.stderr


def test_over_ssh_the_port_is_said_and_the_last_address_may_be_opened_here(site: Site, shell: Shell) -> None:
    """Breaks with: a person without a browser on this machine who is told an address that leads nowhere for theirs."""
    command = [sys.executable, "-m", "burnish.cli", "login", "--no-browser", "--timeout", "30"]
    with subprocess.Popen(command, env=shell.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        address = running.stderr.readline().partition(": ")[2].strip()
        hint = running.stderr.readline()
        back_to = urlsplit(parse_qs(urlsplit(address).query)["cli"][0])
        assert f"ssh -N -L {back_to.port}:127.0.0.1:{back_to.port} " in hint
        assert "burnish login --key -" in hint
        with Browser() as elsewhere:
            last = elsewhere.log_in(address, "ada").headers["location"]
        assert last.startswith(f"http://127.0.0.1:{back_to.port}/")
        assert "Logged in" in httpx.get(last, trust_env=False).text, "as curl does it here"
        assert running.wait(30) == 0
    assert list(shell.kept()) == [site.url]


def test_a_key_is_piped_checked_and_never_an_argument(site: Site, shell: Shell, here: Shell) -> None:
    done = shell.run("login", "--key", site.key)
    assert done.returncode == 2
    assert site.key not in done.stdout + done.stderr
    for wrong in ("", "two words", "bk_aaaaaaaaaaaa_" + "b" * 43):
        done = here.run("login", "--key", "-", stdin=wrong + "\n")
        assert done.returncode == 1, done.stdout
        assert not shell.config.exists()
    done = shell.run("login", "--key", "-", stdin=f"{site.key}\n")
    assert done.returncode == 0, done.stderr
    assert here.json("whoami")["subject"] == "administrator"
    assert here.run("logout").returncode == 0
    assert site.ask("GET", "/platform/identity/me").status_code == 200, "a key that was given is not revoked"


def test_the_key_is_in_no_process_list(site: Site, shell: Shell) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "burnish.cli", "login", "--key", "-"], env=shell.environment, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen = set()
    assert process.stdin is not None
    process.stdin.write(f"{site.key}\n".encode())
    process.stdin.close()
    while process.poll() is None:
        seen |= {path.read_bytes() for path in Path(f"/proc/{process.pid}").glob("cmdline")}
    assert process.returncode == 0
    assert seen
    assert not any(site.key.encode() in line for line in seen)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_what_an_administrator_does(site: Site, here: Shell, tmp_path: Path) -> None:
    admin = {"BURNISH_API_KEY": site.key}
    assert here.json("project", "create", "vision", "--name", "Vision", **admin)["id"] == "vision"
    assert {one["id"] for one in here.json("project", "list", **admin)["data"]} >= {"default", "vision"}
    here.json("user", "add", "grace", "--email", "grace@example.org", **admin)
    here.json("role", "grant", "grace", "viewer", "--project", "vision", **admin)
    made = here.json("key", "create", "laptop", "--for", "grace", "--project", "vision", "--days", "1", **admin)
    grace = {"BURNISH_API_KEY": made["key"]}
    assert here.json("whoami", **grace)["project"] == "vision"

    denied = here.run("user", "add", "eve", **grace)
    assert denied.returncode == 1
    assert "grace lacks the permission identity:write" in denied.stderr
    foreign = here.run("list", BURNISH_PROJECT="default", **grace)
    assert foreign.returncode == 1
    assert "not_found" in foreign.stderr
    assert here.json("list", BURNISH_PROJECT="vision", **grace)["data"] == []

    rotated = here.run("key", "rotate", made["id"], "--overlap", "0", "--quiet", **admin)
    assert re.fullmatch(r"bk_\w{12}_[\w-]{43}\n", rotated.stdout), rotated.stderr
    assert here.run("whoami", **grace).returncode == 1
    assert here.run("whoami", BURNISH_API_KEY=rotated.stdout.strip()).returncode == 0
    saved = tmp_path / "key"
    bare = here.run("key", "create", "saved", "--output", str(saved), **admin)
    assert (bare.returncode, bare.stdout, stat.S_IMODE(saved.stat().st_mode)) == (0, "", 0o600), bare.stderr
    assert here.json("whoami", BURNISH_API_KEY=saved.read_text().strip())["subject"] == "administrator"
    assert here.run("key", "create", "again", "-o", str(saved), **admin).returncode == 2, "no file is overwritten"
    assert here.run("key", "create", "x", "--scope", "no:such", "-o", f"{saved}2", **admin).returncode == 1
    assert not Path(f"{saved}2").exists()
    assert here.run("key", "revoke", rotated.stdout.strip(), **admin).returncode == 2, "an id is wanted, not the key"
    assert {one["role"] for one in here.json("role", "list", "--of", "grace", **admin)["data"]} == {"viewer"}
    here.json("role", "revoke", "grace", "viewer", "--project", "vision", **admin)
    assert here.run("role", "revoke", "grace", "viewer", "--project", "vision", **admin).returncode == 1
    here.json("user", "disable", "grace", **admin)
    assert {one["id"]: bool(one["disabled_at"]) for one in here.json("user", "list", **admin)["data"]}["grace"]
    assert here.json("service-account", "add", "ci", BURNISH_PROJECT="vision", **admin)["project_id"] == "vision"
    assert "ci" in {one["id"] for one in here.json("service-account", "list", **admin)["data"]}


def test_the_audit_log_is_listed_exported_and_verified(site: Site, here: Shell, tmp_path: Path) -> None:
    admin = {"BURNISH_API_KEY": site.key}
    here.json("user", "add", "noted", **admin)
    entries = here.json("audit", "list", "--actor", "administrator", **admin)["data"]
    assert entries[0]["object_id"] == "noted"
    target = tmp_path / "audit.jsonl"
    assert here.run("audit", "export", "-o", str(target), **admin).returncode == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert here.json("audit", "verify", **admin)["ok"] is True


def test_a_code_without_its_verifier_and_twice(site: Site, provider: Provider) -> None:
    """What somebody who reads the browser's history has. Breaks with: a code that is all that is needed."""
    import base64
    import hashlib

    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    login = f"{site.url}/platform/auth/login?cli=http://127.0.0.1:9/done&challenge={challenge}&state=mine"

    def code() -> str:
        with Browser() as browser:
            location = browser.log_in(login, "ada").headers["location"]
            assert browser.http.cookies.get("burnish_session") is None, "the command line's login is no session"
        found = re.fullmatch(r"http://127\.0\.0\.1:9/done\?code=([\w-]{43})&state=mine", location)
        assert found is not None, location
        return found[1]

    def exchange(code: str, verifier: str) -> httpx.Response:
        body = {"code": code, "verifier": verifier}
        return httpx.post(f"{site.url}/platform/auth/exchange", json=body, trust_env=False)

    stolen = code()
    assert exchange(stolen, "w" * 43).status_code == 401
    assert exchange(stolen, verifier).status_code == 401, "one wrong try ends it"
    good = code()
    answer = exchange(good, verifier)
    assert answer.status_code == 200, answer.text
    assert answer.json()["expires_at"]
    assert exchange(good, verifier).status_code == 401
    assert exchange("never", verifier).status_code == 401


def test_authentication_off_needs_no_login(tmp_path: Path) -> None:
    server = Server(tmp_path / "home")
    try:
        shell = Shell(server.start().url, tmp_path / "config")
        done = shell.run("login")
        assert done.returncode == 0
        assert "authentication is off" in done.stdout
        assert Here(server.url, tmp_path / "config").json("whoami")["subject"] == "local"
        answer = httpx.post(f"{server.url}/platform/auth/session", json={"key": "bk_x"}, trust_env=False)
        assert answer.status_code == 409
    finally:
        server.end_everything()
