"""Published folders are read-only, and only root may write there all the same: nothing may count on being root."""

import json
import os
import subprocess
import sys
from pathlib import Path

RIGHTS = "-dac_override,-dac_read_search"
WITHOUT = ("setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}") if os.geteuid() == 0 else ()
"""Starts a process for which, and for whose children, permissions hold as for any other user."""


def test_a_models_whole_life_without_roots_rights(tmp_path: Path) -> None:
    done = subprocess.run(
        [*WITHOUT, sys.executable, "-m", "tests.support.life", str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"adapter": True, "scored": [2, 2, 2]}
