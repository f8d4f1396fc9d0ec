"""Workflow engines, and servers that one logs in to, for the tests of this suite."""

from collections.abc import AsyncIterator, Iterator

import pytest

from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from tests.support.fake_components import FakeComponents
from tests.support.identity import People
from tests.support.oidc import Provider, real_provider
from tests.support.site import Site, running_site
from tests.support.workflow_engine import Engine, engine


@pytest.fixture
async def wf(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store) as found:
        yield found


@pytest.fixture
async def by_hand(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store, FakeComponents(mode="by hand")) as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with authentication on."""
    with running_site(tmp_path_factory.mktemp("login") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def provider(site: Site) -> Iterator[Provider]:
    """A provider of OpenID Connect that ``site`` trusts, with one user."""
    with real_provider() as running:
        site.register_with(running)
        running.set_user("ada", email="ada@example.org", email_verified=True, name="Ada", groups=["ml"])
        yield running


@pytest.fixture
async def people(database: Database) -> People:
    """Users and keys of two projects."""
    found = People(database)
    await found.begin("ml", "other")
    return found
