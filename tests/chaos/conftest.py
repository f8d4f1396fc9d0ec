"""What the chaos suite shares: a tiny model, an undisturbed run, the matrix, and its table at the end."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lifecycle
from tests.support.faults import Matrix
from tests.support.harm import HEADER, TABLE
from tests.support.places import SEED, Material, Place, Reference, undisturbed
from tests.support.postgres import PostgresServer

_MATRIX = Matrix()
_NOTES: list[str] = []


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section(f"chaos (BURNISH_TEST_SEED={SEED})")
    for line in [*_MATRIX.table(), *([HEADER, *TABLE, ""] if TABLE else []), *_NOTES]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    """Where every blow of the step matrix is written down."""
    return _MATRIX


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary."""

    def added(text: str) -> None:
        _NOTES.append(f"{request.node.name}: {text}")

    return added


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Chance of this test's own: the same for the same seed, whichever tests run beside it."""
    print(f"BURNISH_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A tiny random model and a classification set."""
    folder = tmp_path_factory.mktemp("material")
    return Material(lifecycle.tiny_model(folder / "model"), lifecycle.write_words(folder / "data"))


@pytest.fixture(scope="session")
def reference(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What the workflow makes when nothing disturbs it, and how long each step takes."""
    started = time.monotonic()
    found = undisturbed(material, tmp_path_factory.mktemp("reference") / "home")
    hosts = ", ".join(f"{step} {seconds:.1f}" for step, seconds in found.seconds.items() if seconds)
    _NOTES.append(f"undisturbed: {time.monotonic() - started:.0f} s; hosts worked {hosts} s")
    return found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest) -> Place:
    """A fresh home with an empty database, on SQLite and then on PostgreSQL; whatever runs there is ended."""
    made: Place = request.getfixturevalue(f"{request.param}_place")
    return made


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Iterator[Place]:
    """A fresh home with an empty SQLite database."""
    yield from _places("sqlite", tmp_path, lambda: None)


@pytest.fixture
def postgresql_place(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Place]:
    """A fresh home with an empty PostgreSQL database."""
    names: list[str] = []

    def new_url() -> str:
        names.append(postgres_server.create_database())
        return postgres_server.url(names[-1])

    yield from _places("postgresql", tmp_path, new_url)
    for name in names:
        postgres_server.drop_database(name)


def _places(dialect: str, folder: Path, new_url: Callable[[], str | None]) -> Iterator[Place]:
    made: list[Place] = []
    numbers = itertools.count(1)

    def another() -> Place:
        made.append(Place(dialect, folder / f"home{next(numbers)}", new_url(), another))
        return made[-1]

    yield another()
    for one in made:
        one.end_everything()
