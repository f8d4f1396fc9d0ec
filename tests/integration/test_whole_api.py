"""The whole API of a running server: what it documents, and whether it keeps to that whatever is sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support.fuzzing import FULL, NEEDS_WHAT_IS_THERE, fuzz, tolerances
from tests.support.server import Server, running_burnish, wait_for

METHODS = {"get", "put", "post", "delete", "patch"}
ROWS = b"".join(b'{"text": "film number %d", "label": "%s"}\n' % (n, (b"good", b"bad")[n % 2]) for n in range(40))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_burnish(tmp_path_factory.mktemp("whole") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    return whole_document(server)


def whole_document(server: Server) -> dict[str, Any]:
    """Return the document once it has the routes of every component: one that is slow to answer is left out of it."""
    found: dict[str, Any] = {"paths": {}}

    def whole() -> bool:
        found.update(server.request("GET", "/openapi.json"))
        return bool({"/platform/datasets", "/platform/deployments"} <= found["paths"].keys())

    wait_for(whole, 30, server.tail)
    return found


@pytest.fixture(scope="module")
def there(server: Server) -> dict[str, list[Any]]:
    """Objects that are there, by the parameter that names them: not every request shall end with a 404."""
    upload = "/platform/datasets?filename=rows.jsonl&name="
    bytes_ = {"Content-Type": "application/octet-stream"}
    made = [server.request("POST", upload + name, ROWS, headers=bytes_) for name in ("reviews", "films")]
    # The registry asks for an artifact, not for one that an engine can load.
    version = {"model": {**made[0]["artifact"], "kind": "gguf"}}
    server.request("POST", "/platform/models/sentiment/versions", version)
    server.request("PUT", "/platform/models/sentiment/aliases/production", {"version": 1})
    server.request("PATCH", "/platform/configuration", {"set": {"gateway.per_key.burst": 800}, "reason": "try"})
    server.request("PUT", "/platform/secrets/sentiment", {"value": "a value that nobody needs"})
    steps = {"first": {"kind": "noop"}, "second": {"kind": "noop", "needs": ["first"]}}
    run = {"definition": {"name": "hello", "steps": steps}}
    split = {"component": "data_management", "kind": "split", "with": {"dataset": "${{ parameters.data.artifact }}"}}
    cut = {"name": "cut", "parameters": {"data": {"type": "dataset"}}, "steps": {"first": split}}
    runs = [run, run, {"definition": cut, "parameters": {"data": "reviews"}}]
    ids = [server.request("POST", "/platform/workflows/run", one)["workflow_id"] for one in runs]
    for one in ids:
        path = f"/platform/workflows/{one}/status"
        wait_for(lambda path=path: server.request("GET", path)["status"] == "succeeded", 30, path)  # type: ignore[misc]
    jobs = server.request("GET", "/platform/jobs")["data"]
    return {
        "path.dataset": ["reviews", "films"], "path.version": ["1"], "path.other": ["1"], "path.name": ["sentiment"],
        "path.alias": ["production"], "path.workflow_id": ids, "path.job_id": [job["job_id"] for job in jobs[:3]],
        "path.step": ["first", "second"], "path.key": ["gateway.per_key.burst"], "path.number": [1],
        "path.component_id": [one["component_id"] for one in server.request("GET", "/platform/components")["data"]],
    }  # fmt: skip


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield f"{method.upper()} {path}", item[method]


def follow(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference stands for."""
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def examples(document: dict[str, Any], part: dict[str, Any]) -> list[tuple[dict[str, Any], Any]]:
    """Return each example of a body or an answer, with its schema."""
    found = []
    for content in part.get("content", {}).values():
        schema = content.get("schema", {})
        target = follow(document, schema)
        given = [content["example"]] if "example" in content else []
        given += [one["value"] for one in content.get("examples", {}).values()]
        given += [target["example"]] if "example" in target else []
        found += [(schema, one) for one in given + target.get("examples", [])]
    return found


def test_each_operation_says_what_it_does_with_an_example_and_all_its_errors(document: dict[str, Any]) -> None:
    listed = list(operations(document))
    assert len(listed) >= 58
    lacks = []
    for name, operation in listed:
        answers = {status: follow(document, one) for status, one in operation["responses"].items()}
        fine = {status: one for status, one in answers.items() if status < "400"}
        wrong = {status: one for status, one in answers.items() if status >= "400"}
        parameters = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        shown = examples(document, operation.get("requestBody", {}))
        shown += [one for answer in fine.values() for one in examples(document, answer)]
        # An answer without a body has no example; the path has.
        shown += [
            ({}, one)
            for one in parameters
            if set(fine) == {"204"} and ("example" in one or "examples" in one["schema"])
        ]
        needed = {"401", "403", "421", "500", *(("400", "413") if "requestBody" in operation else ())}
        needed |= {"422"} if operation.get("parameters") and "/v1/" not in name else set()
        needed |= {"404"} if parameters else set()
        lacks += [
            f"{name} lacks {what}"
            for what, there in {
                "summary": operation.get("summary"), "description": operation.get("description"), "example": shown,
                "errors " + ", ".join(sorted(needed - set(wrong))): needed <= set(wrong),
                "a description of each error": all(one.get("description") for one in wrong.values()),
                "an example of each error": all(examples(document, one) for one in wrong.values()),
            }.items()
            if not there
        ]  # fmt: skip
        for schema, example in shown:
            if isinstance(example, dict):
                whole = {**schema, "components": document["components"]}
                lacks += [
                    f"{name}: {e.message}" for e in jsonschema_rs.Draft202012Validator(whole).iter_errors(example)
                ]
    assert not lacks, "\n".join(lacks)


ANY_TEXT = {"POST /platform/workflows/validate"}
"""What may hold a NUL: it is kept nowhere, and the answer says what is wrong."""


def texts(document: dict[str, Any], schema: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each text in what a schema describes, with its place."""
    schema = follow(document, schema)
    if schema.get("type") == "string" and not schema.keys() & {"enum", "const", "format"}:
        yield place, schema
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from texts(document, one, place)
    if "items" in schema:
        yield from texts(document, schema["items"], f"{place}[]")
    for name, one in schema.get("properties", {}).items():
        yield from texts(document, one, f"{place}.{name}")


def test_no_schema_allows_a_text_that_is_refused_for_its_nul(document: dict[str, Any]) -> None:
    """The same as the fuzzing below would find, one day. Breaks with: a text that is kept, and has no pattern."""
    found = []
    for name, operation in operations(document):
        if name in NEEDS_WHAT_IS_THERE or name in ANY_TEXT or " /v1/" in name:
            continue
        taken = [
            (one["name"], one["schema"]) for one in operation.get("parameters", []) if one["in"] in {"path", "query"}
        ]
        taken += [("body", one["schema"]) for one in operation.get("requestBody", {}).get("content", {}).values()]
        found += [
            f"{name}: {place}"
            for start, schema in taken
            for place, text in texts(document, schema, start)
            if re.search(text.get("pattern", ""), "a\0b") or re.search(text.get("pattern", ""), "\0")
        ]
    assert found == []


def test_a_component_that_cannot_be_asked_takes_no_document_away(server: Server, document: dict[str, Any]) -> None:
    nowhere = "http://127.0.0.1:9"
    registration = {
        "component_id": "gone-1", "component_type": "gone", "name": "gone", "version": "1",
        "health_endpoint": nowhere + "/health", "api_endpoint": nowhere,
    }  # fmt: skip
    server.request("POST", "/platform/components/register", registration)
    assert whole_document(server)["paths"].keys() == document["paths"].keys()


def configuration(there: dict[str, list[Any]]) -> list[str]:
    """Return schemathesis's configuration: known objects half of the time, and the narrow tolerances."""
    lines = []
    for name, values in there.items():
        key = name.replace(".", "_")
        lines += [f"[dictionaries.{key}]", f"values = {json.dumps(values)}"]
    lines.append("[parameters]")
    lines += [f'"{name}" = {{ dictionary = "{name.replace(".", "_")}", probability = 0.5 }}' for name in there]
    # We send no Location headers; looking for them breaks schemathesis on a text with brackets in an answer.
    lines += ["[phases.stateful.inference]", 'algorithms = ["dependency-analysis"]']
    return lines + tolerances()


@pytest.mark.timeout(1800)
def test_whatever_is_sent_is_answered_as_documented(
    server: Server, there: dict[str, list[Any]], tmp_path: Path
) -> None:
    phases = "examples,coverage,fuzzing,stateful" if FULL else "examples,fuzzing,stateful"
    fuzz(
        f"{server.url}/openapi.json", tmp_path, examples=30 if FULL else 4, phases=phases,
        configuration=configuration(there),
    )  # fmt: skip
    assert server.request("GET", "/platform/ready")["status"] == "ready"
    assert "Traceback" not in server.tail(100_000)
