"""The parts of a component's process: its options, whom it believes, how it stays registered."""

import asyncio
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from burnish.component import Kind, Spec
from burnish.component.options import default_id, read_options
from burnish.component.platform_client import PlatformClient, Registrar
from burnish.component.process import ComponentProcess
from burnish.component.serving import check_functions, name_script
from burnish.component.trust import Trust, from_file
from burnish.core.errors import HomeLocked, InvalidRequest, Unauthenticated, Unavailable
from burnish.core.protocol import Registration
from burnish.platform.identity import LOCAL, CallerTokens
from tests.support.scripted_server import Answer, Asked, serving

KEY, OTHER = b"k" * 32, b"o" * 32


class EchoSpec(Spec):
    text: str


KINDS = {"echo": Kind(EchoSpec, EchoSpec, "Echo", run=f"{__name__}:echo")}


def echo(spec: EchoSpec, job: object) -> EchoSpec:
    return spec


def test_options_come_from_flags_then_variables_then_defaults(tmp_path: Path) -> None:
    environment = {
        "BURNISH_COMPONENT_ID": "from-variable", "BURNISH_URL": "http://platform:8000/", "BURNISH_API_KEY": "bk_secret",
        "BURNISH_COMPONENT_PORT": "9001", "BURNISH_COMPONENT_HOME": str(tmp_path),
    }  # fmt: skip
    options = read_options("echo", ["--port", "9002"], environment)
    assert (options.component_id, options.port, options.platform_url) == ("from-variable", 9002, "http://platform:8000")
    assert options.api_key is not None
    assert "bk_secret" not in repr(options)
    bare = read_options("echo", ["--id", "e:1"], {})
    assert bare.home == Path.home() / ".burnish-components" / "e_1"
    assert bare.api_key is None


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [(["--id", "no spaces"], "--id"), (["--port", "-1"], "--port"), (["--log-level", "loud"], "--log-level"), (["--id", "../x"], "--id")],
)  # fmt: skip
def test_options_that_cannot_be_used_are_named(arguments: list[str], flag: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_options("echo", arguments, {})
    assert refused.value.problems[0].where == flag


def test_a_component_without_an_id_is_named_after_its_machine() -> None:
    assert default_id("echo", "my host.local") == "echo-my-host.local"
    assert default_id("echo", "") == "echo-node"


async def verified(trust: Trust, token: str) -> None:
    """Verify as a caller does that comes again when it is told to."""
    for _ in range(200):
        try:
            trust.verify(token, "echo")
        except Unavailable:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("never known")


async def test_tokens_are_believed_by_the_platforms_keys_alone() -> None:
    tokens, asked = CallerTokens(KEY), 0

    async def fetch() -> Mapping[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("not up yet")
        if asked == 2:
            raise ZeroDivisionError("nobody thought of this")
        return tokens.public_jwks()

    trust = Trust(fetch)
    with pytest.raises(Unavailable, match="not known yet"):
        trust.verify(tokens.sign(LOCAL, "echo"), "echo")
    await trust.start()
    await verified(trust, tokens.sign(LOCAL, "echo"))
    assert trust.verify(tokens.sign(LOCAL, "echo"), "echo").subject == "local"
    for wrong in (tokens.sign(LOCAL, "other"), CallerTokens(OTHER).sign(LOCAL, "echo"), "", "a.b.c", "\udcff"):
        with pytest.raises(Unauthenticated):
            trust.verify(wrong, "echo")
    await trust.stop()


async def test_a_new_key_of_the_platform_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.component.trust._AGAIN_SECONDS", 0.0)
    current = CallerTokens(KEY)

    async def fetch() -> Mapping[str, Any]:
        return current.public_jwks()

    trust = Trust(fetch)
    await trust.start()
    await verified(trust, current.sign(LOCAL, "echo"))
    current = CallerTokens(OTHER)
    await verified(trust, current.sign(LOCAL, "echo"))
    await trust.stop()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{"kty": "OKP"}]}', b'{"keys": 3}', b"\xff"]
)
def test_a_file_that_is_no_key_set_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="JWK set"):
        from_file(path)


REGISTRATION = Registration(
    component_id="echo-1", component_type="echo", name="echo", version="1", health_endpoint="http://127.0.0.1:1/health",
    api_endpoint="http://127.0.0.1:1",
)  # fmt: skip


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_registers_beats_and_registers_again_when_it_is_not_known() -> None:
    known: set[str] = set()
    down = [True]

    def script(asked: Asked) -> Answer:
        assert asked.headers["authorization"] == "Bearer bk_key"
        if down[0]:
            return Answer(503, {"code": "unavailable", "detail": "starting"})
        if asked.path.endswith("/register"):
            known.add(asked.json()["component_id"])
            return Answer(200, {"status": "success"}, {"burnish-generation": "7"})
        if asked.method == "DELETE":
            known.discard("echo-1")
            return Answer(204, b"")
        if "echo-1" not in known:
            return Answer(404, {"code": "not_found", "detail": "who?"})
        return Answer(200, {"api_endpoint": "http://127.0.0.1:1"})

    told: list[str] = []
    with serving(script) as server:
        platform = PlatformClient(server.url, SecretStr("bk_key"))
        registrar = Registrar(platform, REGISTRATION, seconds=0.02, tell=told.append)
        await registrar.start()
        await until(lambda: server.asked)
        down[0] = False
        await until(lambda: any(one.path.endswith("/heartbeat") for one in server.asked))
        assert json.loads(next(one for one in server.asked if one.path.endswith("/heartbeat")).body) == {
            "generation": 7
        }
        known.clear()
        await until(lambda: len(told) == 2)
        await registrar.stop()
        await platform.close()
    assert known == set()
    assert [line.split()[0] for line in told] == ["Registered", "Registered", "Deregistered"]


async def test_of_two_processes_of_one_id_the_older_gives_in_and_takes_nothing_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks with: two that take the id from each other for ever; an end that deregisters who came later."""
    generation = [1]

    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/register"):
            return Answer(200, {"status": "success"}, {"burnish-generation": str(generation[0])})
        if asked.method == "DELETE":
            older = int(asked.headers["burnish-generation"]) < generation[0]
            return Answer(409, {"code": "conflict", "detail": "a later one"}) if older else Answer(204, b"")
        if asked.json()["generation"] < generation[0]:
            return Answer(409, {"code": "conflict", "detail": "registered anew"})
        return Answer(200, {"api_endpoint": "http://127.0.0.1:1"})

    told: list[str] = []
    with serving(script) as server:
        platform = PlatformClient(server.url, None)
        registrar = Registrar(platform, REGISTRATION, seconds=0.02, tell=told.append)
        await registrar.start()
        await until(lambda: any(one.path.endswith("/heartbeat") for one in server.asked))
        generation[0] = 2  # another process has come
        await until(lambda: len(told) == 2)
        generation[0] = 3  # which takes it back
        await until(lambda: "another process has registered as echo-1" in caplog.text)
        await registrar.stop()
        await platform.close()
    assert [one.path.rpartition("/")[2] for one in server.asked].count("register") == 2
    assert server.asked[-1].headers["burnish-generation"] == "2"
    assert [line.split()[0] for line in told] == ["Registered", "Registered"]


async def test_a_refusal_is_said_once_and_asked_again_slowly(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda asked: Answer(403, {"code": "forbidden", "detail": "not your id", "hint": "ask"})) as server:
        platform = PlatformClient(server.url, None)
        registrar = Registrar(platform, REGISTRATION, seconds=0.01)
        await registrar.start()
        await until(lambda: server.asked)
        await asyncio.sleep(0.1)
        assert len(server.asked) == 1
        await registrar.stop()
        await platform.close()
    assert caplog.text.count("not your id (ask)") == 1


@pytest.mark.parametrize("answer", [Answer(200, b"<html>"), Answer(200, []), Answer(200, {"keys": "x" * (2 << 20)})])
async def test_a_platform_that_answers_oddly_is_an_error_not_a_crash(answer: Answer) -> None:
    with serving(lambda asked: answer) as server:
        platform = PlatformClient(server.url, None)
        trust = Trust(platform.jwks)
        await trust.start()
        await until(lambda: server.asked)
        with pytest.raises(Unavailable):
            trust.verify(CallerTokens(KEY).sign(LOCAL, "echo"), "echo")
        await trust.stop()
        await platform.close()


def process(tmp_path: Path, component_type: str = "echo", component_id: str = "e1", **more: Any) -> ComponentProcess:
    options = read_options("echo", ["--id", component_id, "--home", str(tmp_path / "home")], {})
    return ComponentProcess(component_type, more.pop("kinds", KINDS), options, **{"version": "1", "name": None, **more})


def test_a_home_is_one_components_and_one_processs(tmp_path: Path) -> None:
    with process(tmp_path).held(), pytest.raises(HomeLocked, match="process"), process(tmp_path).held():
        pass
    with pytest.raises(InvalidRequest, match="is the home of e1"), process(tmp_path, component_id="e2").held():
        pass
    with process(tmp_path).held():
        pass


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"component_type": "platform"}, "kept for the platform"), ({"component_type": "No"}, "no name"),
        ({"version": ""}, "1 to 50"), ({"routes": ["/v1"]}, "no path prefix"), ({"routes": ["/platform/jobs"]}, "platform's own"),
        ({"kinds": {"a b": KINDS["echo"]}}, "no name of a kind"), ({"name": "\x07"}, "cannot be registered"),
    ],
)  # fmt: skip
def test_what_the_platform_would_refuse_is_said_at_the_start(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        process(tmp_path, **more)


def test_functions_are_looked_for_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check_functions({"echo": Kind(EchoSpec, EchoSpec, "Echo", run="json:dumps")})
    main = types.ModuleType("__main__")
    main.__file__ = "/somewhere/json.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(Unavailable, match="cannot be found"):
        check_functions({"echo": Kind(EchoSpec, EchoSpec, "Echo", run="json:not_in_the_script")})
    for run in ("no_such_module:echo", "no.such:echo", "json", ":echo", "nothing"):
        with pytest.raises(Unavailable, match="cannot be found"):
            check_functions({"echo": Kind(EchoSpec, EchoSpec, "Echo", run=run)})


def test_classes_of_a_script_get_the_name_by_which_hosts_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scripted(Spec):
        text: str

    Scripted.__module__ = "__main__"
    main = types.ModuleType("__main__")
    main.__file__ = str(tmp_path / "echoes.py")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setenv("PYTHONPATH", "/before")
    name_script({"echo": Kind(Scripted, Scripted, "Echo", run="echoes:echo")})
    assert Scripted.__module__ == "echoes"
    import os

    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/before"]
