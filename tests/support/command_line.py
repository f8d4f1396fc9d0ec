"""The command line in this process: one of its own costs a second for each command."""

import io
import os
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import pytest

from burnish.cli.main import main


def burnish(*arguments: str, environment: Mapping[str, str], stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command with this environment, and no other; return what a process would have left."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment, clear=True), mock.patch("sys.stdin", io.StringIO(stdin)),
        redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        main(arguments)
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())
