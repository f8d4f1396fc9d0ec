"""The documentation builds without a warning, says what the code says, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.core.errors import all_errors
from burnish.platform.workflow import definition

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return site


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_reference_has_every_error_route_and_command(built: Path) -> None:
    errors = text_of(built / "reference" / "errors" / "index.html")
    for error in all_errors():
        if error.__module__.startswith("burnish.core."):
            assert f"<code>{error.code}</code>" in errors
    routes = text_of(built / "reference" / "api" / "index.html")
    for path in (
        "/platform/workflows/run",
        "/platform/datasets",
        "/platform/deployments/{name}/rollback",
        "/platform/models",
    ):
        assert path in routes
    commands = text_of(built / "reference" / "cli" / "index.html")
    for command in ("burnish serve", "burnish dataset add", "burnish deployment rollback", "burnish completion"):
        assert command in commands
    assert "train-optimize-deploy" in text_of(built / "reference" / "definitions" / "index.html")


def test_what_a_page_includes_stands_in_it(built: Path) -> None:
    """Breaks with: a marker in a block of Python that a formatter takes for Python (`--8 < --"..."`)."""
    howto = text_of(built / "how-to" / "write-a-component" / "index.html")
    assert "def measure(spec: EchoSpec" in re.sub(r"<[^>]+>", "", howto)
    assert "steps:" in re.sub(r"<[^>]+>", "", howto)
    for page in built.rglob("*.html"):
        plain = re.sub(r"<[^>]+>", "", text_of(page))
        assert not re.search(r"--8\s*&lt;", plain), page


def test_no_page_loads_anything_from_elsewhere(built: Path) -> None:
    loading = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="(https?:)?//|<link[^>]+rel="(?:stylesheet|preload|icon)"[^>]+href="(https?:)?//'
    )
    for page in built.rglob("*.html"):
        assert not loading.search(text_of(page)), page


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "workflows").glob("*.yaml")), ids=lambda file: file.name)
def test_the_examples_are_definitions(file: Path) -> None:
    assert definition.read(file.read_text(encoding="utf-8")).name == file.stem


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_pages_lead_somewhere(file: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / file).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(file.name[:4]) for file in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
