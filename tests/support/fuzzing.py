"""An API against whatever its own document allows and forbids: schemathesis in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FULL = bool(os.environ.get("BURNISH_TEST_FULL"))
STREAMS = r"/events$"
"""Never fuzzed: a stream ends with its execution or job. tests/integration/test_workflows.py and test_jobs.py follow them."""

NEEDS_WHAT_IS_THERE = {
    # Any bytes fit `format: binary`; whether they are a dataset only its parser can say.
    "POST /platform/datasets": (413, 415, 422),
    # The artifact that a spec names has to be in the store; a digest that only looks like one is not.
    "POST /platform/deployments": (422,),
    "POST /platform/models/{name}/versions": (422,),
    # JSON data, where a NUL anywhere inside cannot be kept.
    "POST /platform/components/register": (422,),
    # Scopes are names of permissions; with authentication off nobody calls whose key it could be.
    "POST /platform/identity/keys": (422,),
    # An idempotency key that came with another body before.
    "POST /platform/identity/keys/{key_id}/rotate": (422,),
    "POST /platform/identity/projects": (422,),
    "POST /platform/identity/users": (422,),
    "POST /platform/identity/service-accounts": (422,),
    "POST /platform/identity/bindings": (422,),
    # Which keys there are, and which values fit which key and each other, is the configuration's own schema's to say.
    "PATCH /platform/configuration": (422,),
    "POST /platform/configuration/import": (422,),
    "POST /platform/configuration/rollback": (422,),
    # A key file has to be on the server's machine.
    "POST /platform/secrets/rewrap": (422,),
    # Where a login may lead is more than a pattern says, and the command line's needs its challenge.
    "GET /platform/auth/login": (422,),
    # A definition's graph, kinds, references and parameters are checked beyond its shape.
    "POST /platform/workflows/run": (422,),
    "POST /platform/workflows/{workflow_id}/fork": (422,),
    "POST /platform/workflows/{workflow_id}/retry": (422,),
}
"""Operations for which a body of the right shape may still be wrong, and the statuses that say so."""


KNOWS_NO_HEADER = "DELETE /platform/components/{component_id}"
"""Has a header of its own, to which one is added that nobody knows: as HTTP has it, that one is left alone."""
OF_A_REPETITION = "DELETE /platform/identity/bindings/{binding_id}"
"""Who gives a role again under the same idempotency key is told what was made then, though it may have been removed meanwhile."""


def tolerances() -> list[str]:
    """Return the lines of schemathesis's configuration that allow what is said above, and no more."""
    accepted = ["2xx", "3xx", "401", "403", "404", "409", "429", "5xx"]
    lines = []
    for name, statuses in NEEDS_WHAT_IS_THERE.items():
        expected = json.dumps([*accepted, *map(str, statuses)])
        lines += ["[[operations]]", f'include-name = "{name}"',
                  f"checks.positive_data_acceptance.expected-statuses = {expected}"]  # fmt: skip
    refused = json.dumps(["204", "400", "401", "403", "404", "405", "406", "409", "415", "422", "428", "429", "5xx"])
    lines += ["[[operations]]", f'include-name = "{KNOWS_NO_HEADER}"',
              f"checks.negative_data_rejection.expected-statuses = {refused}"]  # fmt: skip
    lines += ["[[operations]]", f'include-name = "{OF_A_REPETITION}"',
              "checks.ensure_resource_availability.enabled = false"]  # fmt: skip
    return lines


def fuzz(
    document: str, folder: Path, *options: str, examples: int, phases: str, left_out: Sequence[str] = (),
    configuration: Sequence[str] = (), headers: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Send what ``document`` (a URL, or a file in ``folder``) allows and forbids; fail with each broken promise.

    All checks are made, as schemathesis does by itself; asked for by name, they would be made where :func:`tolerances` lifts one.

    Nothing is sent to paths that fit one of ``left_out``. ``make test`` sends the same at each run; with
    ``BURNISH_TEST_FULL`` the run's seed decides.
    """
    (folder / "schemathesis.toml").write_text("\n".join(configuration) + "\n")
    arguments = [
        "--config-file", "schemathesis.toml", "run", document, "--no-color",
        "--exclude-path-regex", "|".join([STREAMS, *left_out]), "--max-examples", str(examples), "--phases", phases, "--generation-database", "none", "--seed",
        os.environ.get("BURNISH_TEST_SEED", "1") if FULL else "1", "--continue-on-failure", "--request-timeout", "30",
        "--warnings", "off", *options,
        *(part for name, value in (headers or {}).items() for part in ("--header", f"{name}: {value}")),
    ]  # fmt: skip
    command = [sys.executable, "-m", "schemathesis.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
