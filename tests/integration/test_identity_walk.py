"""Every route x everyone: a whole server with authentication on, and no way in but those that are permitted.

The operations come from the server's own OpenAPI document, and from the apps themselves where they are not in it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from burnish.app import about_app, platform_app
from burnish.core.permissions import PERMISSIONS, PLATFORM_WIDE, ROLES
from burnish.core.settings import Settings
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.identity.permission import AUTHENTICATED, OPEN, declared
from burnish.wiring import build, open_installation
from tests.support.server import Server, wait_for

METHODS = ("get", "post", "put", "patch", "delete")
ROWS = b"".join(b'{"text": "film number %d", "label": "%s"}\n' % (n, (b"good", b"bad")[n % 2]) for n in range(40))
OPEN_ROUTES = {
    "GET /platform/health", "GET /platform/ready", "GET /platform/identity/jwks", "GET /platform/auth/login",
    "GET /platform/auth/callback", "GET /platform/auth/methods", "POST /platform/auth/exchange", "POST /platform/auth/session",
}  # fmt: skip
EVERYBODYS = ("/platform/components", "/platform/workflows/definitions", "/platform/kinds", "/platform/configuration",
              "/platform/secrets", "/platform/auth", "/platform/identity/users")  # fmt: skip
"""What belongs to no project: there is nothing foreign in it. (Users are, but a project's administrator sees few.)"""


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    permission: str | None
    body: Any

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class World:
    """A running server, who may come in, and what there is in project ``default``."""

    server: Server
    keys: dict[str, str] = field(default_factory=dict)
    there: dict[str, str] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def ask(self, method: str, path: str, key: str | None, body: Any = None, **headers: str) -> httpx.Response:
        sent = {} if key is None else {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=self.server.url, timeout=30) as client:
            return client.request(method, path, json=body, headers={**sent, **headers})

    def made(self, path: str, body: Any, key: str = "root", **headers: str) -> Any:
        answer = self.ask("POST", path, self.keys[key], body, **headers)
        assert answer.status_code < 300, (path, body, answer.text)
        return answer.json()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    unlimited = {"BURNISH_CONFIGURATION__gateway__anonymous__per_address__requests_per_second": "0"}
    server = Server(tmp_path_factory.mktemp("walk") / "home", environment={"BURNISH_AUTH": "on", **unlimited})
    try:
        server.start()
        found = re.findall(r"^    (bk_\S+)$", server.log.read_text(), re.MULTILINE)
        assert len(found) == 1, "the administrator's key is printed once"
        world = World(server, {"root": found[0]})
        people(world)
        objects(world)
        wait_for(lambda: read_operations(world), 60, "the document lacks the routes of a component")
        yield world
        server.stop()
    finally:
        server.end_everything()


def people(world: World) -> None:
    """Make one credential of each sort."""
    identity = "/platform/identity"
    world.made(f"{identity}/projects", {"id": "foreign"})
    for name, role, project in (
        ("viewer", "viewer", "default"), ("engineer", "engineer", "default"), ("administrator", "administrator", "default"),
        ("foreigner", "administrator", "foreign"), ("leaver", "engineer", "default"),
    ):  # fmt: skip
        world.made(f"{identity}/users", {"id": f"u-{name}"})
        world.made(f"{identity}/bindings", {"subject": f"u-{name}", "role": role, "project": project})
        world.keys[name] = world.made(f"{identity}/keys", {"subject": f"u-{name}", "project": project})["key"]
    instance = {"component_id": "echo-1", "component_type": "echo"}
    world.keys["component"] = world.made(f"{identity}/keys", {"component": instance})["key"]
    old = world.made(f"{identity}/keys", {"subject": "u-engineer", "days": 1e-9})
    gone = world.made(f"{identity}/keys", {"subject": "u-engineer"})
    assert world.ask("DELETE", f"{identity}/keys/{gone['id']}", world.keys["root"]).status_code == 204
    engineer = world.keys["engineer"]
    wrong = engineer[:-1] + ("A" if engineer[-1] != "A" else "B")
    world.keys |= {"expired": old["key"], "revoked": gone["key"], "wrong": wrong, "malformed": "bk_nonsense"}


def objects(world: World) -> None:
    """Make one object of each sort in project ``default``."""
    with httpx.Client(base_url=world.server.url, timeout=60) as client:
        for name in ("reviews",):
            upload = client.post(
                f"/platform/datasets?filename=rows.jsonl&name={name}", content=ROWS,
                headers={"content-type": "application/octet-stream", "authorization": f"Bearer {world.keys['engineer']}"},
            )  # fmt: skip
            assert upload.status_code == 201, upload.text
    artifact = {**upload.json()["artifact"], "kind": "gguf"}
    world.made("/platform/models/sentiment/versions", {"model": artifact}, "engineer")
    moved = world.ask("PUT", "/platform/models/sentiment/aliases/production", world.keys["engineer"], {"version": 1})
    assert moved.status_code == 200, moved.text
    split = {"component": "data_management", "kind": "split", "with": {"dataset": "${{ parameters.data.artifact }}"}}
    cut = {"name": "cut", "parameters": {"data": {"type": "dataset"}}, "steps": {"first": split}}
    run = world.made("/platform/workflows/run", {"definition": cut, "parameters": {"data": "reviews"}}, "engineer")
    status = f"/platform/workflows/{run['workflow_id']}/status"
    wait_for(lambda: world.ask("GET", status, world.keys["viewer"]).json()["status"] == "succeeded", 60, status)
    jobs = world.ask("GET", "/platform/jobs", world.keys["viewer"]).json()["data"]
    robot = world.made("/platform/identity/service-accounts", {"id": "robot"}, "administrator")
    binding = world.made("/platform/identity/bindings", {"subject": "robot", "role": "viewer"}, "administrator")
    key = world.made("/platform/identity/keys", {"subject": "robot"}, "administrator")
    world.there = {
        "workflow_id": run["workflow_id"], "step": "first", "job_id": jobs[0]["job_id"], "dataset": "reviews", "version": "1",
        "other": "1", "name": "sentiment", "alias": "production", "subject": robot["id"], "binding_id": binding["id"],
        "key_id": key["id"], "project_id": "default", "component_id": "echo-1", "key": "gateway", "number": "1",
        "component_type": "data_management", "model": "sentiment",
    }  # fmt: skip


def read_operations(world: World) -> bool:
    """Read the document; a component that is slow to answer is missing in it."""
    document = world.ask("GET", "/openapi.json", world.keys["root"]).json()
    world.operations = list(operations(document))
    return bool({"/platform/datasets", "/platform/deployments"} <= document["paths"].keys())


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                body = BODIES.get(f"{method.upper()} {path}", example_of(document, item[method].get("requestBody")))
                yield Operation(method.upper(), path, item[method].get("x-permission"), body)


BODIES: dict[str, Any] = {
    "PUT /platform/models/{name}/aliases/{alias}": {"version": 1},
    "POST /platform/models/{name}/versions": {
        "model": {"digest": "sha256:" + "0" * 64, "kind": "model", "size_bytes": 1}
    },
    "POST /platform/workflows/{workflow_id}/steps/{step}/approve": {"approved": True},
}
"""Where the document has no example of a body."""


def example_of(document: dict[str, Any], body: dict[str, Any] | None) -> Any:
    content = (body or {}).get("content", {}).get("application/json", {})
    if "example" in content:
        return content["example"]
    for one in content.get("examples", {}).values():
        return one["value"]
    schema = content.get("schema", {})
    for one in (schema, *schema.get("anyOf", ())):
        target = document["components"]["schemas"].get(one.get("$ref", "").rpartition("/")[2], one)
        if target.get("examples"):
            return target["examples"][0]
    return None


def filled(path: str, values: dict[str, str], otherwise: str = "nothing") -> str:
    return re.sub(r"\{(\w+)(?::path)?\}", lambda found: values.get(found[1], otherwise), path)


NOWHERE = {
    "version": "999", "other": "998", "number": "999999", "binding_id": "bnd_0", "key_id": "key_0", "workflow_id": "wf_0",
    "job_id": "job_0", "key": "nothing.here", "component_id": "echo-1",
}  # fmt: skip
"""Ids under which nothing is: what an allowed caller asks of them does no harm."""


def may(actor: str, permission: str) -> bool:
    if actor == "root":
        return permission in ROLES["administrator"]
    if actor == "component":
        return permission == "component:register"
    role = "administrator" if actor == "foreigner" else actor
    return permission in ROLES[role] - PLATFORM_WIDE


def test_each_operation_declares_a_permission(world: World) -> None:
    assert len(world.operations) > 95
    odd = [one.name for one in world.operations if one.permission not in {*PERMISSIONS, OPEN, AUTHENTICATED}]
    assert odd == []
    assert {one.name for one in world.operations if one.permission == OPEN} == OPEN_ROUTES


async def test_each_route_of_each_app_declares_a_permission(tmp_path: Path) -> None:
    """Also those that are in no document. Only what is listed here is open."""
    settings = Settings(
        home=tmp_path / "home", database_url=SecretStr(f"sqlite:///{tmp_path}/walk.db"), auth="on", cpus=1
    )
    installation = await open_installation(settings)
    try:
        process = build(installation)
        assert process.platform is not None
        apps = {"platform": platform_app(process, process.platform), "about": about_app(process)}
        apps |= {one.component_type: one.app for one in process.components}
        assert len(apps) == 8
        routes = {
            f"{name}: {method} {path}": kept for name, app in apps.items() for method, path, kept in declared(app)
        }
        assert [route for route, permission in routes.items() if permission is None] == []
        open_ = {route.partition(": ")[2] for route, permission in routes.items() if permission == OPEN}
        assert open_ == OPEN_ROUTES | {
            "GET /health", "HEAD /health", "GET /describe", "GET /docs", "GET /docs/{path}", "GET /api", "GET /api/assets/{name}",
        }  # fmt: skip
        for component in process.components:
            mine = {r: p for r, p in routes.items() if r.startswith(f"{component.component_type}: ") and "/jobs" in r}
            assert set(mine.values()) == {"component:work"}, mine
    finally:
        await installation.close()


@pytest.mark.parametrize("actor", [None, "malformed", "wrong", "expired", "revoked"])
def test_whoever_has_no_good_key_comes_in_nowhere(world: World, actor: str | None) -> None:
    key = None if actor is None else world.keys[actor]
    answers = set()
    with httpx.Client(base_url=world.server.url, timeout=30) as client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        for one in world.operations:
            answer = client.request(one.method, filled(one.path, world.there), json=one.body, headers=headers)
            if one.permission == OPEN:
                assert answer.status_code != 403, one.name
                continue
            assert answer.status_code == 401, (one.name, answer.status_code, answer.text[:300])
            assert answer.headers["www-authenticate"].startswith("Bearer"), one.name
            body = answer.json()
            error = body.get("error", {**body, "trace_id": None})
            answers.add(json.dumps([error.get("detail"), error.get("message", ""), error.get("code")]))
        for raw in ("/", "/platform/nothing", "/v1/nothing", "/components/evaluation/jobs", "/components/evaluation/jobs/x",
                    "/components/model_serving/v1/models", "/components/data_management/platform/datasets", "/metrics",
                    "/openapi.json", "//platform/jobs", "/platform//jobs", "/platform/./jobs", "/%70latform/jobs",
                    "/platform/health/../jobs", "/PLATFORM/jobs", "/platform/identity/jwks/../me"):  # fmt: skip
            for method in ("GET", "POST", "DELETE"):
                answer = client.request(method, raw, headers=headers)
                assert answer.status_code in {401, 404, 405} | ({200} if raw == "/" else set()), (
                    method,
                    raw,
                    answer.text[:200],
                )
                assert '"data"' not in answer.text
    assert len(answers) <= 2, answers  # one form for /v1, one for the rest: the same whatever is wrong


@pytest.mark.parametrize("actor", ["viewer", "engineer", "administrator", "component", "foreigner", "root"])
def test_each_role_does_what_it_may_and_nothing_else(world: World, actor: str) -> None:
    """What is denied is asked about what is there; what is allowed, about what is not, so that it does no harm."""
    wrong = []
    with httpx.Client(
        base_url=world.server.url, timeout=30, headers={"authorization": f"Bearer {world.keys[actor]}"}
    ) as client:
        for one in world.operations:
            permission = str(one.permission)
            if permission in (OPEN, AUTHENTICATED):
                continue
            allowed = may(actor, permission)
            if one.path.startswith("/v1/models"):
                allowed = allowed or may(actor, "inference:run")
            harmless = allowed and one.method != "GET"
            path = filled(one.path, NOWHERE if harmless else world.there)
            if one.path.endswith("/events") and allowed:
                path = filled(one.path, NOWHERE)
            answer = client.request(one.method, path, json={"not": "it"} if harmless else one.body)
            problem = answer.json() if answer.status_code >= 400 else {}
            where = problem.get("where") or problem.get("error", {}).get("param")
            if allowed:
                fine = answer.status_code not in (401, 403) or (
                    answer.status_code == 403 and beyond(actor, one, problem)
                )
                fine = fine and answer.status_code < 500
            else:
                fine = answer.status_code == 403 and where == permission
            if not fine:
                wrong.append((one.name, permission, allowed, answer.status_code, answer.text[:300]))
    assert wrong == []


def beyond(actor: str, one: Operation, problem: dict[str, Any]) -> bool:
    """Tell whether a refusal is for more than the declared permission: for all projects, or another instance's id."""
    everywhere = "in all projects" in problem.get("detail", "") and actor in {"administrator", "foreigner"}
    return everywhere or (actor == "component" and one.permission == "component:register")


def test_what_is_another_projects_does_not_exist(world: World) -> None:
    """An administrator of another project gets the answer for what is not there, whatever they ask of what is."""
    wrong, asked = [], 0
    for one in world.operations:
        if "{" not in one.path or one.path.startswith(EVERYBODYS) or one.permission in (OPEN, AUTHENTICATED):
            continue
        asked += 1
        real = world.ask(one.method, filled(one.path, world.there), world.keys["foreigner"], one.body)
        if real.status_code != 404:
            wrong.append((one.name, real.status_code, real.text[:300]))
    assert wrong == []
    assert asked >= 35
    for collection in ("/platform/datasets", "/platform/models", "/platform/workflows", "/platform/jobs", "/platform/deployments",
                       "/platform/identity/service-accounts", "/v1/models"):  # fmt: skip
        assert world.ask("GET", collection, world.keys["foreigner"]).json()["data"] == [], collection
    for named in ("default", "nothing"):
        answer = world.ask("GET", "/platform/jobs", world.keys["foreigner"], **{"burnish-project": named})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no project {named}")
    assert {
        one["project"]
        for one in world.ask("GET", "/platform/identity/bindings", world.keys["foreigner"]).json()["data"]
    } == {"foreign"}
    assert {
        one["project_id"]
        for one in world.ask("GET", "/platform/identity/audit", world.keys["foreigner"]).json()["data"]
    } <= {"foreign"}


def test_a_caller_that_is_claimed_from_outside_is_not_believed(world: World) -> None:
    """Neither a token of another installation nor one that somebody got hold of makes a viewer an administrator."""
    forged = CallerTokens(b"x" * 32).sign(LOCAL, "data_management")
    secret = (world.server.home / "secret.key").read_bytes()
    stolen = CallerTokens(secret).sign(LOCAL, "data_management")
    for token in (forged, stolen):
        for header in ("burnish-caller", "Burnish-Caller", "BURNISH-CALLER"):
            refused = world.ask("DELETE", "/platform/datasets/reviews", world.keys["viewer"], **{header: token})
            assert (refused.status_code, refused.json()["where"]) == (403, "dataset:write")
            assert world.ask("DELETE", "/platform/datasets/reviews", None, **{header: token}).status_code == 401
    direct = "/components/data_management/platform/datasets/reviews"
    assert world.ask("DELETE", direct, None, **{"burnish-caller": forged}).status_code == 401
    assert (
        world.ask("POST", "/components/data_management/jobs", None, {}, **{"burnish-caller": stolen}).status_code == 403
    )
    assert world.ask("GET", "/platform/datasets/reviews", world.keys["viewer"]).status_code == 200
    twice = [("authorization", f"Bearer {world.keys['viewer']}"), ("authorization", f"Bearer {world.keys['root']}")]
    with httpx.Client(base_url=world.server.url) as client:
        both = client.request("DELETE", "/platform/datasets/reviews", headers=twice)
    assert both.status_code in {400, 401, 403}, "two credentials are none"


def test_a_workflow_that_deploys_needs_the_permission_to_deploy(world: World) -> None:
    scopes = sorted(ROLES["engineer"] - {"model:deploy", "model:write"})
    key = world.made("/platform/identity/keys", {"scopes": scopes, "name": "no deploying"}, "engineer")["key"]
    spec = {"deployment": "x", "model": {"digest": "sha256:" + "0" * 64, "kind": "gguf"}}
    steps = {
        "first": {"kind": "noop"},
        "ship": {"component": "model_serving", "kind": "deploy", "with": spec, "needs": ["first"]},
        "name": {"kind": "promote", "with": {"name": "sentiment", "version": 1}, "needs": ["first"]},
    }
    body = {"definition": {"name": "shipping", "steps": steps}}
    refused = world.ask("POST", "/platform/workflows/run", key, body)
    assert refused.status_code == 403, refused.text
    told = {one["where"]: one["message"] for one in refused.json()["problems"]}
    assert told.keys() == {"steps.ship", "steps.name"}
    assert "model:deploy" in told["steps.ship"]
    checked = world.ask("POST", "/platform/workflows/validate", key, body).json()
    assert {"steps.ship", "steps.name"} <= {one["where"] for one in checked["problems"]}
    allowed = world.ask("POST", "/platform/workflows/run", world.keys["engineer"], body)
    assert allowed.status_code != 403, allowed.text


def test_the_log_knows_who_did_what_and_holds_no_key(world: World) -> None:
    root = world.keys["root"]
    assert world.ask("GET", "/platform/jobs", world.keys["wrong"]).status_code == 401
    assert world.ask("DELETE", "/platform/datasets/reviews", world.keys["viewer"]).status_code == 403
    audit = "/platform/identity/audit?limit=500&action="
    for action in ("login:failed", "request:refused"):
        wait_for(lambda action=action: bool(world.ask("GET", audit + action, root).json()["data"]), 30, action)  # type: ignore[misc]
    lines = world.ask("GET", "/platform/identity/audit/export", root).text.splitlines()
    entries = [json.loads(line) for line in lines]
    told = {(one["actor"], one["action"], one["object_id"]) for one in entries}
    assert ("u-engineer", "workflow:run", world.there["workflow_id"]) in told
    assert ("u-engineer", "dataset:write", "reviews@1") in told or ("u-engineer", "dataset:write", "") in told
    assert ("u-viewer", "request:refused", "dataset:write") in told
    assert any(one["action"] == "key:mint" and one["route"] == "POST /platform/identity/keys" for one in entries)
    text = "\n".join(lines) + world.server.log.read_text().replace(root, "", 2)
    assert [name for name, key in world.keys.items() if key.split("_", 2)[-1] in text and name != "malformed"] == []
    verdict = world.ask("GET", "/platform/identity/audit/verify", root).json()
    assert verdict["ok"] is True
    assert verdict["entries"] >= len(entries)
    assert world.ask("GET", "/platform/identity/audit/verify", world.keys["administrator"]).status_code == 403


def test_a_key_that_is_revoked_stops_within_a_second_and_minting_again_shows_no_secret(world: World) -> None:
    once = {"idempotency-key": "mint-1"}
    first = world.made("/platform/identity/keys", {"name": "twice"}, "engineer", **once)
    again = world.made("/platform/identity/keys", {"name": "twice"}, "engineer", **once)
    assert (again["id"], again["key"]) == (first["id"], None)
    assert world.ask("GET", "/platform/jobs", first["key"]).status_code == 200
    assert world.ask("DELETE", f"/platform/identity/keys/{first['id']}", world.keys["engineer"]).status_code == 204
    wait_for(lambda: world.ask("GET", "/platform/jobs", first["key"]).status_code == 401, 1, "the key still works")
