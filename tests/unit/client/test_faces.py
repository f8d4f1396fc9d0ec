"""Operations that are written once: what both clients offer, send and return."""

import inspect
from typing import Any

import pytest

from burnish.client import AsyncClient, Client
from burnish.client.faces import Face, operation
from burnish.client.identity import Me
from burnish.core.errors import Forbidden
from tests.support.scripted_server import Answer, serving

FACES = ("identity", "configuration", "secrets")
ME = {"subject": "ada", "kind": "user", "project": "default"}


def needed(face: object) -> dict[str, list[Any]]:
    """Every operation of a face, with values for the parameters that have no default."""
    found = {}
    for name, _ in inspect.getmembers(type(face), lambda value: isinstance(value, operation)):
        parameters = inspect.signature(getattr(face, name)).parameters.values()
        without = [one.annotation for one in parameters if one.default is inspect.Parameter.empty]
        found[name] = [7 if annotation is int else "a b/c" for annotation in without]
    return found


@pytest.mark.parametrize("face", FACES)
async def test_both_clients_send_the_same(face: str) -> None:
    """Breaks with: an operation that one of them lacks, or sends otherwise."""
    refusal = Answer(403, {"detail": "not you", "code": "forbidden"})
    with serving(lambda _: refusal) as server:
        with Client(server.url) as client:
            waiting = getattr(client, face)
            calls = needed(waiting)
            assert len(calls) >= 6
            for name, values in calls.items():
                with pytest.raises(Forbidden):
                    getattr(waiting, name)(*values)
        half = len(server.asked)
        async with AsyncClient(server.url) as asynchronous:
            other = getattr(asynchronous, face)
            assert needed(other) == calls
            for name, values in calls.items():
                with pytest.raises(Forbidden):
                    await getattr(other, name)(*values)
    assert [(one.method, one.path, one.body) for one in server.asked[:half]] == [
        (one.method, one.path, one.body) for one in server.asked[half:]
    ]


async def test_both_clients_read_the_same() -> None:
    expected = Me.model_validate(ME)
    with serving(lambda _: Answer(body=ME)) as server:
        with Client(server.url) as client:
            assert client.identity.me() == expected
        async with AsyncClient(server.url) as asynchronous:
            assert await asynchronous.identity.me() == expected


async def test_what_is_streamed_is_the_same() -> None:
    with serving(lambda _: Answer(lines=["one: 1", "two: 2"])) as server:
        with Client(server.url) as client:
            assert list(client.identity.export_audit()) == ["one: 1", "two: 2"]
        with Client(server.url) as client:
            assert client.configuration.export() == "one: 1\ntwo: 2\n"
        async with AsyncClient(server.url) as asynchronous:
            assert await asynchronous.configuration.export() == "one: 1\ntwo: 2\n"


def test_an_operation_reads_like_a_method() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert isinstance(client.secrets, Face)
        assert client.secrets.set.__name__ == "set"
        assert list(inspect.signature(client.secrets.set).parameters) == ["name", "value"]
        assert client.secrets.set.__doc__ == "Set a secret, or give it a new value."
        with pytest.raises(TypeError, match="value"):
            client.secrets.set("name")  # type: ignore[call-arg]
