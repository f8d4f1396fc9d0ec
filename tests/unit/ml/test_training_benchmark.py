"""The training benchmark compares like with like."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_FILE = Path(__file__).parents[3] / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_benchmark", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_of_sides_that_label_other_tokens_are_compared_by_example(benchmark: ModuleType) -> None:
    # The same answers at 6 nats each: over two labelled tokens, and over three of which one costs nothing.
    times = [float(second) for second in range(8)]
    sides = {"burnish": [3.0] * 7, "trl-tuned": [2.0] * 7}
    runs = {
        side: [benchmark._measured(times, 8, losses, tokens)]
        for (side, losses), tokens in zip(sides.items(), (2.0, 3.0), strict=True)
    }
    report = benchmark._report(runs)
    assert [values["nats_an_example"] for values in report.values()] == [6.0, 6.0]
    assert report["burnish"]["examples_per_second"] == 8
    table = benchmark._table(report)
    assert "nats an example" in table.splitlines()[0]
    assert table.count("| 6.000 |") == 2
