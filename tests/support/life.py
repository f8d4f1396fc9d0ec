"""The life of a tiny model by the jobs' own functions: import, split, train, compress, evaluate; prints what came of it.

    python -m tests.support.life FOLDER

It must not have root's right to write into read-only files and folders: everything here must work without it.
"""

import json
import sys
from pathlib import Path

from burnish.components.data_management.split_job import split
from burnish.core.specs import CompressionSpec, EvaluationSpec, FineTuningSpec, ImportModelSpec, SplitSpec
from burnish.ml import tiny
from burnish.ml.import_model import import_model
from burnish.ml.quantize import gguf
from burnish.ml.score_classification import evaluate
from burnish.ml.train import sft
from burnish.testing import LocalJobContext
from tests.support import training


def live(root: Path) -> dict[str, object]:
    """Run every job, each in a context of its own on one store, and return what is worth looking at."""

    def job(name: str) -> LocalJobContext:
        return LocalJobContext(root, name)

    rows = training.dataset(job("upload"))
    model = import_model(ImportModelSpec(source=str(tiny.build("llama", root / "model"))), job("import")).model
    parts = split(SplitSpec(dataset=rows, test=0.25, validation=0.1, on_leak="report"), job("split"))
    spec = FineTuningSpec(
        model=model, train=parts.train, validation=parts.validation, max_steps=4, batch_size=4, checkpoint_steps=2
    )
    tuning = job("tune")
    sft(spec, tuning)
    adapter = sft(spec, tuning.restarted()).adapter
    small = gguf(CompressionSpec(model=model, adapter=adapter, params={"quantization": "q8_0"}), job("compress")).model
    tuned = EvaluationSpec(model=model, adapter=adapter, dataset=parts.test, context_length=256, limit=2)
    twice = job("evaluate")  # a job that is started again finds its first try's files
    scores = [evaluate(tuned, context).metrics["accuracy"].n for context in (twice, twice.restarted())]
    served = EvaluationSpec(model=small, dataset=parts.test, context_length=256, limit=2)
    return {"adapter": adapter is not None, "scored": [*scores, evaluate(served, job("score")).metrics["accuracy"].n]}


def main(arguments: list[str]) -> None:
    """Check that permissions hold, then live in the folder named first."""
    sealed = Path(arguments[0]) / "sealed"
    sealed.mkdir()
    sealed.chmod(0o555)
    try:
        (sealed / "file").touch()
    except PermissionError:
        print(json.dumps(live(Path(arguments[0]))))
    else:
        sys.exit("this process may write into read-only folders: it proves nothing")


if __name__ == "__main__":
    main(sys.argv[1:])
