from collections.abc import AsyncIterator

import pytest

from tests.support.gateway import KEYS, Stand, gateway_stand


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    async with gateway_stand(keys=KEYS) as found:
        yield found


@pytest.fixture
async def open_stand() -> AsyncIterator[Stand]:
    async with gateway_stand() as found:
        yield found
