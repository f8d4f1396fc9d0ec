"""Operations that are written once: what both clients offer, send and return."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from burnish.client import AsyncClient, Client
from burnish.client.faces import Face, operation
from burnish.client.identity import Me
from burnish.core.errors import Forbidden
from tests.support.scripted_server import Answer, serving

FACES = {
    "workflows": 11, "datasets": 4, "models": 6, "deployments": 5, "jobs": 3, "identity": 21, "configuration": 9, "secrets": 6,
}  # fmt: skip
"""Each face, and how many operations it has at least."""
ME = {"subject": "ada", "kind": "user", "project": "default"}


def needed(face: object, file: Path) -> dict[str, dict[str, Any]]:
    """Every operation of a face, with values for the parameters that have no default."""
    values = {int: 7, bool: True, Path | str: file}
    found = {}
    for name, _ in inspect.getmembers(type(face), lambda value: isinstance(value, operation)):
        parameters = inspect.signature(getattr(face, name)).parameters.values()
        without = [
            one for one in parameters if one.default is inspect.Parameter.empty and one.kind is not one.VAR_KEYWORD
        ]
        found[name] = {one.name: values.get(one.annotation, "a b/c") for one in without}
    return found


@pytest.mark.parametrize("face", FACES)
async def test_both_clients_send_the_same(face: str, tmp_path: Path) -> None:
    """Breaks with: an operation that one of them lacks, or sends otherwise."""
    refusal = Answer(403, {"detail": "not you", "code": "forbidden"})
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    with serving(lambda _: refusal) as server:
        with Client(server.url) as client:
            waiting = getattr(client, face)
            calls = needed(waiting, file)
            assert len(calls) >= FACES[face]
            for name, values in calls.items():
                with pytest.raises(Forbidden):
                    getattr(waiting, name)(**values)
        half = len(server.asked)
        async with AsyncClient(server.url) as asynchronous:
            other = getattr(asynchronous, face)
            assert needed(other, file) == calls
            for name, values in calls.items():
                with pytest.raises(Forbidden):
                    await getattr(other, name)(**values)
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
