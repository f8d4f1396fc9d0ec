"""Who may give what to whom: projects, roles and keys, on both databases."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, Conflict, Forbidden, NotFound
from burnish.core.permissions import PLATFORM_WIDE, ROLES
from burnish.platform.identity import Principal, service, store
from burnish.platform.identity.credentials import keys
from burnish.platform.identity.permission import authorize
from burnish.platform.identity.schemas import (
    InstanceOf,
    NewBinding,
    NewKeyRequest,
    NewProject,
    NewSubject,
    RotateRequest,
)
from tests.support.identity import ROOT, People


async def refused(people: People, error: type[BurnishError], caller: Principal, asked: NewBinding) -> BurnishError:
    with pytest.raises(error) as caught:
        async with people.database.write() as session:
            await service.give(session, caller, asked)
    return caught.value


async def test_a_project_administrator_gives_roles_in_their_own_project_only(people: People) -> None:
    boss = await people.user("boss", "administrator", "ml")
    await people.user("ada", "viewer", "other")
    async with people.database.write() as session:
        given = await service.give(session, boss, NewBinding(subject="ada", role="engineer"))
        again = await service.give(session, boss, NewBinding(subject="ada", role="engineer"))
        scoped = replace(boss, scopes=ROLES["administrator"] - PLATFORM_WIDE)  # as a key of one project has them
        assert (await service.give(session, scoped, NewBinding(subject="ada", role="administrator"))).project == "ml"
    assert (given.project, given.id) == ("ml", again.id)
    foreign = await refused(people, NotFound, boss, NewBinding(subject="ada", role="engineer", project="other"))
    missing = await refused(people, NotFound, boss, NewBinding(subject="ada", role="engineer", project="nothing"))
    assert foreign.message.replace("other", "nothing") == missing.message, "a foreign project looks like none"
    everywhere = await refused(people, Forbidden, boss, NewBinding(subject="boss", role="administrator", project="*"))
    assert "in all projects" in everywhere.message
    with pytest.raises(Forbidden, match="in all projects"):
        async with people.database.write() as session:
            await service.add_project(session, boss, NewProject(id="mine"))
    with pytest.raises(Forbidden, match="in all projects"):
        async with people.database.write() as session:
            await service.add_user(session, boss, NewSubject(id="friend"))


async def test_nobody_gives_more_than_they_have(people: People) -> None:
    """With a key that has few scopes an administrator gives no role, mints no key and rotates none beyond them."""
    boss = await people.user("boss", "administrator", "ml")
    robot = await people.robot("robot", boss)
    few = frozenset({"identity:write", "identity:read", "key:write", "model:read"})
    narrow = Principal("boss", "ml", boss.roles, few)
    error = await refused(people, Forbidden, narrow, NewBinding(subject="robot", role="viewer"))
    assert error.where == "component:read"
    whole = await people.key(robot)
    async with people.database.write() as session:
        with pytest.raises(Forbidden, match="a key of robot allows"):
            await people.credentials.mint(session, narrow, NewKeyRequest(subject="robot"))
        with pytest.raises(Forbidden, match="a key of robot allows"):
            await people.credentials.rotate(session, narrow, whole.id, RotateRequest())
        with pytest.raises(Forbidden, match="a key of boss allows"):
            await people.credentials.mint(session, narrow, NewKeyRequest(scopes=("model:deploy", "model:read")))
    made = await people.key(narrow, NewKeyRequest(subject="robot", scopes=("model:read",)))
    assert (await people.come_in(made.key)).permissions() == {"model:read"}
    own = await people.key(narrow)
    assert own.scopes is not None
    assert set(own.scopes) <= few


async def test_a_key_minted_for_somebody_else_does_not_grow_with_their_roles(people: People) -> None:
    """Breaks with: keys for others without scopes. Whoever minted one holds its secret."""
    await people.user("ada", "viewer", "ml")
    minted = await people.key(ROOT, NewKeyRequest(subject="ada", project="ml"))
    await people.user("ada", "administrator", "*")
    found = await people.come_in(minted.key)
    assert found.permissions() == ROLES["viewer"] - PLATFORM_WIDE
    with pytest.raises(NotFound):
        await people.come_in(minted.key, "other")


async def test_a_refusal_says_when_it_is_the_key_that_lacks_what_its_owner_has(people: People) -> None:
    """Breaks with: `ada lacks workflow:run`, while she has it and her old key does not."""
    asked = NewKeyRequest(subject="ada", project="ml")
    await people.user("ada", "viewer", "ml")
    old = await people.key(ROOT, asked)
    await people.user("ada", "engineer", "ml")
    with pytest.raises(Forbidden) as caught:
        authorize(await people.come_in(old.key), "workflow:run")
    assert caught.value.message == (
        f"the credential {old.id} lacks the permission workflow:run in project ml (ada has it)"
    )
    assert "make another" in str(caught.value.hint)
    authorize(await people.come_in((await people.key(ROOT, asked)).key), "workflow:run")
    with pytest.raises(Forbidden, match="ada lacks the permission identity:write in project ml"):
        authorize(await people.come_in(old.key), "identity:write")
    instance = InstanceOf(component_id="echo-1", component_type="echo")
    scoped = replace(ROOT, scopes=frozenset({"component:register", "key:write", "model:read"}))
    own = await people.key(scoped, NewKeyRequest(component=instance))
    assert own.scopes is None, "it can register its instance, whoever made it"
    with pytest.raises(Forbidden, match="is that of the instance echo-1"):
        authorize(await people.come_in(own.key), "model:read")


async def test_no_key_is_made_that_opens_nothing(people: People) -> None:
    await people.user("ada", "viewer", "ml")
    for project in ("other", "*"):
        name = "ada" if project == "other" else "nobody"
        if name == "nobody":
            async with people.database.write() as session:
                await service.add_user(session, ROOT, NewSubject(id=name))
        with pytest.raises(Conflict, match="has no role in") as caught:
            await people.key(ROOT, NewKeyRequest(subject=name, project=project))
        assert f"burnish role grant {name}" in str(caught.value.hint)


async def test_a_key_whose_owner_lost_their_role_says_so(people: People) -> None:
    """Breaks with: a 404 of the very route at which its hint says to look."""
    ada = await people.user("ada", "viewer", "ml")
    key = await people.key(ada)
    async with people.database.write() as session:
        row = await store.binding_of(session, "ada", "ml", "viewer")
        assert row is not None
        await service.take(session, ROOT, row.id)
    with pytest.raises(NotFound, match="its owner has no role in it") as caught:
        await people.come_in(key.key)
    assert "burnish role grant ada" in str(caught.value.hint)


async def test_the_last_administrator_who_can_come_in_stays(people: People) -> None:
    """Breaks with: counting roles. One whose keys are revoked administers nothing."""
    second = await people.user("second", "administrator", "*")
    everywhere = NewKeyRequest(project="*")
    key = await people.key(replace(second, everywhere=second.roles), everywhere)
    roots = await people.key(ROOT, NewKeyRequest(project="*", scopes=("identity:read",)))

    async def take() -> None:
        async with people.database.write() as session:
            row = await store.binding_of(session, "second", "*", "administrator")
            assert row is not None
            await service.take(session, ROOT, row.id)

    with pytest.raises(Conflict, match="last administrator of the platform who can come in") as caught:
        await take()
    assert "burnish key create --for root" in str(caught.value.hint)
    assert (await people.come_in(roots.key)).subject == "root", "which administers nothing"
    with pytest.raises(Conflict, match="last administrator"):
        async with people.database.write() as session:
            await service.disable(session, ROOT, "second", "user")
    await people.key(ROOT, everywhere)
    await take()
    with pytest.raises(NotFound):
        await people.come_in(key.key)


async def test_a_key_of_one_project_holds_there_only(people: People) -> None:
    root = Principal("root", "ml", ROOT.roles, everywhere=ROOT.everywhere)
    narrow = await people.key(root, NewKeyRequest())
    found = await people.come_in(narrow.key)
    assert (found.project_id, found.everywhere) == ("ml", frozenset())
    assert found.permissions() == ROLES["administrator"] - PLATFORM_WIDE
    for project in ("other", "default", "nothing", "../ml", "*"):
        with pytest.raises(NotFound, match="there is no project"):
            await people.come_in(narrow.key, project)
    wide = await people.key(root, NewKeyRequest(project="*"))
    assert {(await people.come_in(wide.key, name)).project_id for name in ("ml", "other", "default")} == {
        "ml",
        "other",
        "default",
    }
    with pytest.raises(NotFound):
        await people.come_in(wide.key, "nothing")
    with pytest.raises(Forbidden, match="for project ml only"):  # the narrow key makes no wide one
        await people.key(found, NewKeyRequest(project="*"))
    async with people.database.write() as session:
        with pytest.raises(Forbidden, match="for project ml only"):
            await people.credentials.rotate(session, found, wide.id, RotateRequest())


async def test_a_new_project_can_be_used_at_once_and_the_header_chooses(people: People) -> None:
    ada = await people.user("ada", "engineer", "ml")
    key = await people.key(ada, NewKeyRequest(project="*"))
    authenticator = people.authenticator()
    headers = {"authorization": f"bearer {key.key}", "openai-project": "fresh"}
    with pytest.raises(NotFound):
        await authenticator.authenticate(headers, method="GET")
    async with people.database.write() as session:
        await service.add_project(session, ROOT, NewProject(id="fresh"))
        await service.give(session, ROOT, NewBinding(subject="ada", role="viewer", project="fresh"))
    found = await authenticator.authenticate(headers, method="GET")
    assert (found.project_id, found.roles) == ("fresh", frozenset({"viewer"}))
    found = await authenticator.authenticate({"authorization": f"Bearer {key.key}"}, method="GET")
    assert found.project_id in {"ml", "fresh"}
    with pytest.raises(Conflict):
        async with people.database.write() as session:
            await service.add_project(session, ROOT, NewProject(id="fresh"))


async def test_the_last_administrator_of_the_platform_stays(people: People) -> None:
    async def binding_of(name: str) -> str:
        async with people.database.read() as session:
            row = await store.binding_of(session, name, "*", "administrator")
        assert row is not None
        return row.id

    async def change(verb: str, name: str) -> None:
        async with people.database.write() as session:
            if verb == "take":
                await service.take(session, ROOT, await binding_of_in(session, name))
            else:
                await service.disable(session, ROOT, name, service.USER)

    async def binding_of_in(session: AsyncSession, name: str) -> str:
        row = await store.binding_of(session, name, "*", "administrator")
        assert row is not None
        return row.id

    assert await binding_of("root")
    for verb in ("take", "disable"):
        with pytest.raises(Conflict, match="last administrator"):
            await change(verb, "root")
    await people.user("second", "administrator", "*")
    await change("disable", "root")
    with pytest.raises(Conflict, match="last administrator"):
        await change("take", "second")
    async with people.database.write() as session:
        await service.enable(session, ROOT, "root", service.USER)
    await change("take", "second")


async def test_two_administrators_that_remove_each_other_at_once_leave_one(people: People) -> None:
    """Breaks with: looking at who administers without locking it."""
    second = await people.user("second", "administrator", "*")

    async def remove(caller: Principal, name: str) -> bool:
        try:
            async with people.database.write() as session:
                await service.disable(session, caller, name, service.USER)
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(remove(ROOT, "second"), remove(second, "root"))) == [False, True]


async def test_what_is_another_projects_does_not_exist(people: People) -> None:
    boss, rival = await people.user("boss", "administrator", "ml"), await people.user("rival", "administrator", "other")
    async with people.database.write() as session:
        await service.add_service_account(session, rival, NewSubject(id="robot"))
        await service.give(session, rival, NewBinding(subject="robot", role="engineer"))
    key = await people.key(rival, NewKeyRequest(subject="robot"))
    async with people.database.read() as session:
        theirs = await store.bindings_of(session, "robot")
    async with people.database.write() as session:
        for action in (
            service.subject(session, boss, "robot"), service.disable(session, boss, "robot", service.SERVICE_ACCOUNT),
            service.take(session, boss, theirs[0].id), people.credentials.revoke(session, boss, key.id),
            people.credentials.rotate(session, boss, key.id, RotateRequest()), service.project(session, boss, "other"),
            people.credentials.mint(session, boss, NewKeyRequest(subject="robot")),
            people.credentials.mint(session, boss, NewKeyRequest(project="other")),
            service.give(session, boss, NewBinding(subject="robot", role="viewer")),
        ):  # fmt: skip
            with pytest.raises(NotFound):
                await action
        assert [one.id for one in (await service.subjects(session, boss, service.USER, None, 50)).data] == ["boss"]
        assert (await keys(session, boss, None, None, 50)).data == []
        assert [one.subject for one in (await service.bindings(session, boss, None, None, 50)).data] == ["boss"]
        assert [one.id for one in (await service.projects(session, boss, None, 50)).data] == ["ml"]
        assert len((await service.projects(session, ROOT, None, 50)).data) == 3
