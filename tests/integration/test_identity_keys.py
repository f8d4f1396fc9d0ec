"""Keys: whose they are, what they open, how many there may be, and how they end, on both databases."""

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from burnish.core.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import credentials as credentials_module
from burnish.platform.identity import service, store
from burnish.platform.identity.credentials import bootstrap, keys
from burnish.platform.identity.schemas import (
    InstanceOf,
    NewBinding,
    NewKeyRequest,
    NewSubject,
    RotateRequest,
)
from burnish.platform.identity.sessions import Sessions
from tests.support.identity import ROOT, People


async def test_nobody_becomes_somebody_else_but_by_an_administrator_of_every_project(people: People) -> None:
    """Breaks with: keys that the administrator of one project makes for its users. What is done with them is in the
    audit log as theirs."""
    boss, ada = await people.user("boss", "administrator", "ml"), await people.user("ada", "engineer", "ml")
    async with people.database.write() as session:
        await service.give(session, boss, NewBinding(subject="root", role="viewer"))
        await service.add_service_account(session, replace(ROOT, project_id="other"), NewSubject(id="theirs"))
        await service.give(session, ROOT, NewBinding(subject="theirs", role="viewer", project="ml"))
    own = await people.key(ada)
    bound = await people.come_in((await people.key(replace(ROOT, project_id="ml"))).key)
    async with people.database.write() as session:
        for caller, names in ((boss, ("ada", "root", "theirs")), (bound, ("ada", "theirs"))):
            for name in names:
                with pytest.raises(Forbidden, match=f"acts as {name}") as caught:
                    await people.credentials.mint(session, caller, NewKeyRequest(subject=name))
                assert (caught.value.where, "service-account" in str(caught.value.hint)) == ("identity:write", True)
            with pytest.raises(Forbidden, match="acts as ada"):
                await people.credentials.rotate(session, caller, own.id, RotateRequest())
    robot = await people.robot("robot", boss)
    made = await people.key(boss, NewKeyRequest(subject="robot"))
    async with people.database.write() as session:
        made = await people.credentials.rotate(session, boss, made.id, RotateRequest())
        assert (await people.credentials.rotate(session, ada, own.id, RotateRequest())).subject == "ada"
    assert (await people.come_in(made.key)).permissions() == robot.permissions()
    given = await people.key(ROOT, NewKeyRequest(subject="ada", project="ml"))
    assert (await people.come_in(given.key)).subject == "ada"
    async with people.database.write() as session:
        await people.credentials.revoke(session, boss, own.id)  # to end what holds in their project is theirs still


@pytest.mark.parametrize("opened", ["key", "session"])
async def test_what_holds_in_one_project_sees_and_ends_nothing_beyond_it(people: People, opened: str) -> None:
    """Breaks with: a key of one project that is believed for all of its owner's keys."""
    ada = await people.user("ada", "engineer", "ml")
    await people.user("ada", "viewer", "other")
    wide = await people.key(ada, NewKeyRequest(project="*"))
    there = await people.key(replace(ada, project_id="other"))
    here = await people.key(ada)
    narrow = await people.come_in(here.key)
    if opened == "session":
        async with people.database.write() as session:
            made = await Sessions(people.database).create(session, "ada", key_id=here.id)
        narrow = replace(narrow, credential=made.id)
    async with people.database.write() as session:
        for subject in (None, "ada"):
            assert [one.id for one in (await keys(session, narrow, subject, None, 50)).data] == [here.id]
        for action in (people.credentials.revoke, partial(people.credentials.rotate, asked=RotateRequest())):
            with pytest.raises(Forbidden, match="for project ml only"):
                await action(session, narrow, wide.id)
            with pytest.raises(NotFound):
                await action(session, narrow, there.id)
        gone = replace(narrow, credential="ses_gone")
        with pytest.raises(Unauthenticated):
            await keys(session, gone, None, None, 50)
        with pytest.raises(Unauthenticated):
            await people.credentials.revoke(session, gone, wide.id)
        everywhere = replace(narrow, credential=wide.id)
        found = {one.id for one in (await keys(session, everywhere, None, None, 50)).data}
        assert found == {wide.id, there.id, here.id}
        await people.credentials.revoke(session, everywhere, wide.id)
    with pytest.raises(Unauthenticated):
        await people.come_in(wide.key)


async def test_a_key_is_rotated_with_an_overlap_and_revoked_at_once(people: People) -> None:
    ada = await people.user("ada", "engineer", "ml")
    old = await people.key(ada, NewKeyRequest(name="laptop", days=30))
    async with people.database.write() as session:
        new = await people.credentials.rotate(session, ada, old.id, RotateRequest(overlap_seconds=600))
    assert (new.name, new.rotated_from, new.key == old.key) == ("laptop", old.id, False)
    assert new.expires_at is not None
    assert abs(new.expires_at - utcnow() - timedelta(days=30)) < timedelta(minutes=5)
    assert (await people.come_in(old.key)).subject == (await people.come_in(new.key)).subject == "ada"
    async with people.database.read() as session:
        row = await store.key(session, old.id)
    assert row is not None
    assert row.expires_at is not None
    assert row.expires_at < utcnow() + timedelta(seconds=601)
    async with people.database.write() as session:
        with pytest.raises(Conflict, match="rotated already"):
            await people.credentials.rotate(session, ada, old.id, RotateRequest())
    async with people.database.write() as session:
        newest = await people.credentials.rotate(session, ada, new.id, RotateRequest(overlap_seconds=0))
    with pytest.raises(Unauthenticated):
        await people.come_in(new.key)
    async with people.database.write() as session:
        with pytest.raises(Conflict, match="does not work any more"):
            await people.credentials.rotate(session, ada, new.id, RotateRequest())
        await people.credentials.revoke(session, ada, newest.id)
        await people.credentials.revoke(session, ada, newest.id)
    with pytest.raises(Unauthenticated):
        await people.come_in(newest.key)


async def test_a_new_key_tells_nobody_and_one_that_is_rotated_does(people: People) -> None:
    """Breaks with: whoever makes keys has every process ask the database for everybody anew."""
    ada = await people.user("ada", "engineer", "ml")
    topic = people.database.topic(store.TOPIC)
    before = topic.version
    key = await people.key(ada)
    assert topic.version == before
    assert (await people.come_in(key.key)).subject == "ada"
    async with people.database.write() as session:
        await people.credentials.rotate(session, ada, key.id, RotateRequest(overlap_seconds=0))
    assert topic.version > before


async def test_a_subject_has_so_many_keys_that_work_and_no_more(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a table that grows with what any viewer sends."""
    monkeypatch.setattr(credentials_module, "MOST_KEYS", 3)
    ada = await people.user("ada", "viewer", "ml")
    made = [await people.key(ada, NewKeyRequest(days=days)) for days in (30, 30, 1 / 86_400_000)]
    made.append(await people.key(ada))  # one has expired
    with pytest.raises(Conflict, match="ada has 3 keys that work"):
        await people.key(ada)
    await people.key(await people.user("bob", "viewer", "ml"))
    for _ in range(3):
        async with people.database.write() as session:
            made.append(await people.credentials.rotate(session, ada, made[-1].id, RotateRequest(overlap_seconds=600)))
    async with people.database.write() as session:
        with pytest.raises(Conflict, match="6 keys that work"):
            await people.credentials.rotate(session, ada, made[-1].id, RotateRequest())
        for one in made[:-2]:
            await people.credentials.revoke(session, ada, one.id)
    await people.key(ada)
    boss = await people.user("boss", "administrator", "*")
    for number in range(5):  # of instances each has its own
        await people.key(boss, NewKeyRequest(component=InstanceOf(component_id=f"e{number}", component_type="echo")))


async def test_the_credential_of_an_instance_is_for_that_instance_and_nothing_else(people: People) -> None:
    boss = await people.user("boss", "administrator", "ml")
    asked = NewKeyRequest(subject="root", component=InstanceOf(component_id="echo-1", component_type="echo"))
    minted = await people.key(ROOT, asked)
    found = await people.come_in(minted.key)
    assert found.component == ("echo-1", "echo")
    assert found.permissions() == {"component:register"}
    with pytest.raises(Forbidden, match="component:register"):
        await people.key(boss, asked.model_copy(update={"subject": None}))
    with pytest.raises(NotFound):
        await people.come_in(minted.key, "ml")


async def test_the_credential_of_an_instance_ends_with_its_owners_rights(people: People) -> None:
    """Breaks with: an instance's key that is looked up without what its owner may do."""
    second = await people.user("second", "administrator", "*")
    asked = NewKeyRequest(component=InstanceOf(component_id="echo-1", component_type="echo"))
    minted = await people.key(second, asked)
    assert (await people.come_in(minted.key)).component == ("echo-1", "echo")
    async with people.database.write() as session:
        row = await store.binding_of(session, "second", "*", "administrator")
        assert row is not None
        await service.take(session, ROOT, row.id)
    await people.user("second", "administrator", "default")
    with pytest.raises(Unauthenticated):
        await people.come_in(minted.key)
    with pytest.raises(Conflict, match="may not register instances"):
        await people.key(ROOT, asked.model_copy(update={"subject": "second"}))


async def test_a_credential_that_ends_makes_none_of_ones_own_that_outlives_it(people: People) -> None:
    """Breaks with: keys that last as long as is asked, whatever was shown for them."""
    ada = await people.user("ada", "engineer", "ml")
    lasting = await people.key(ada)
    short = await people.key(ada, NewKeyRequest(days=1))
    shown = await people.come_in(short.key)
    for asked in (NewKeyRequest(), NewKeyRequest(days=90)):
        assert (await people.key(shown, asked)).expires_at == short.expires_at
    sooner = (await people.key(shown, NewKeyRequest(days=0.5))).expires_at
    assert sooner is not None
    assert sooner < utcnow() + timedelta(days=0.6)
    async with people.database.write() as session:
        for old in (lasting, short):
            made = await people.credentials.rotate(session, shown, old.id, RotateRequest())
            assert made.expires_at == short.expires_at
    unbound = await people.key(await people.come_in(lasting.key), NewKeyRequest(days=90))
    assert unbound.expires_at is not None
    assert unbound.expires_at < utcnow() + timedelta(hours=2), "the old one of a rotation ends soon, too"
    free = await people.key(ada)
    assert (await people.key(await people.come_in(free.key))).expires_at is None
    async with people.database.write() as session:
        opened = await Sessions(people.database).create(session, "ada")
    login = replace(ada, credential=opened.id)
    ends = (await people.key(login)).expires_at
    assert ends is not None
    assert abs(ends - utcnow() - timedelta(days=7)) < timedelta(minutes=5), "14 times identity.session_seconds"
    with pytest.raises(Unauthenticated):
        await people.key(replace(ada, credential="ses_gone"))


async def test_an_administrator_makes_lasting_keys_for_others_and_for_instances(people: People) -> None:
    await people.user("ada", "engineer", "ml")
    shown = await people.come_in(
        (await people.key(replace(ROOT, project_id="ml"), NewKeyRequest(days=1, project="*"))).key
    )
    assert (await people.key(shown, NewKeyRequest(subject="ada", project="ml"))).expires_at is None
    instance = InstanceOf(component_id="echo-1", component_type="echo")
    assert (await people.key(shown, NewKeyRequest(component=instance))).expires_at is None
    own = (await people.key(shown, NewKeyRequest(project="*"))).expires_at
    assert own is not None
    assert own < utcnow() + timedelta(days=1)


async def test_scopes_are_permissions_and_a_disabled_user_gets_no_key(people: People) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        await people.key(ROOT, NewKeyRequest(subject="root", scopes=("model:delpoy", "model:read")))
    assert [problem.where for problem in wrong.value.problems] == ["body.scopes"]
    await people.user("ada", "engineer", "ml")
    key = await people.key(ROOT, NewKeyRequest(subject="ada", project="ml"))
    async with people.database.write() as session:
        await service.disable(session, ROOT, "ada", service.USER)
    with pytest.raises(Unauthenticated):
        await people.come_in(key.key)
    with pytest.raises(Conflict, match="is disabled"):
        await people.key(ROOT, NewKeyRequest(subject="ada", project="ml"))
    async with people.database.write() as session:
        await service.enable(session, ROOT, "ada", service.USER)
    with pytest.raises(Unauthenticated):
        await people.come_in(key.key)


async def test_the_first_administrator_gets_a_key_once_and_again_when_nobody_could_come_in(database: Database) -> None:
    people = People(database)
    first = await bootstrap(database, people.credentials)
    found = await people.come_in(first)
    assert (found.subject, found.everywhere, found.scopes) == ("administrator", frozenset({"administrator"}), None)
    assert await bootstrap(database, people.credentials) is None
    async with database.write() as session:
        await people.credentials.revoke(session, found, str(found.credential))
    second = await bootstrap(database, people.credentials)
    assert second not in (None, first)
    own = await people.key(await people.come_in(second), NewKeyRequest(project="*"))
    async with database.write() as session:
        await people.credentials.revoke(session, found, (await people.come_in(second)).credential or "")
    assert await bootstrap(database, people.credentials) is None, "the administrator's own key works"
    assert (await people.come_in(own.key)).may_everywhere("identity:write")
    assert own.expires_at is None, "the key of the first start makes lasting ones"
