"""Workflow engines for the tests of this suite."""

from collections.abc import AsyncIterator

import pytest

from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from tests.support.fake_components import FakeComponents
from tests.support.workflow_engine import Engine, engine


@pytest.fixture
async def wf(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store) as found:
        yield found


@pytest.fixture
async def by_hand(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store, FakeComponents(mode="by hand")) as found:
        yield found
