"""The component's job kinds."""

from burnish.core.errors import FieldProblem
from burnish.core.specs.base import Resources
from burnish.core.specs.data import SplitResult, SplitSpec
from burnish.platform.jobs.component_app import Check, Kind


def split_resources(spec: SplitSpec) -> Resources:
    """Return what a split needs: the keys and word pairs of all rows in memory, and a copy of the rows on disk."""
    size = spec.dataset.size_bytes + (spec.test_dataset.size_bytes if spec.test_dataset else 0)
    return Resources(cpus=1, memory_bytes=(512 << 20) + 6 * size, disk_bytes=2 * size)


async def check_split(check: Check) -> list[FieldProblem]:
    """Check what the schema cannot say: the inputs are datasets, and there will be a test set."""
    problems = []
    for field in ("dataset", "test_dataset"):
        value = check.spec.get(field)
        if isinstance(value, dict) and value.get("kind", "dataset") != "dataset":
            message = f"a {value['kind']}, not a dataset"
            problems.append(FieldProblem(where=f"spec.{field}.kind", message=message, hint="give a dataset version"))
    given = check.spec.get("test_dataset") is not None or "test_dataset" in check.unresolved
    share = check.spec.get("test", SplitSpec.model_fields["test"].default)
    if not given and isinstance(share, int | float) and share <= 0:
        hint = "set test above 0, or give test_dataset"
        problems.append(FieldProblem(where="spec.test", message="there would be no test set", hint=hint))
    return problems


KINDS = {
    "split": Kind(
        spec=SplitSpec,
        result=SplitResult,
        summary="Split a dataset into train, validation and test, and look for leaks",
        run="burnish.components.data_management.split_job:split",
        resources=split_resources,
        check=check_split,
        seconds=lambda spec: 2 + spec.dataset.size_bytes / 2e6,
    )
}
