"""Resumable training state as files: safetensors and JSON, no pickle.

``training.json`` (position, history, what it belongs to), ``optimizer.safetensors`` (trainable values and moments),
``rng.safetensors`` (generator states). A training that resumes from it ends bit-equal to one that was never stopped.
"""

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from burnish.core.errors import JobFailed
from burnish.core.specs.base import Spec
from burnish.core.specs.fine_tuning import LossPoint
from burnish.ml.optimizer import FlatAdamW

_POSITION_FILE = "training.json"
_OPTIMIZER_FILE = "optimizer.safetensors"
_RNG_FILE = "rng.safetensors"


class Position(Spec):
    """Where a training is."""

    spec: str
    """Digest of the spec that it belongs to."""
    data: str
    """Digest of the tokens trained on."""
    step: int
    epoch: float
    data_order: str
    """Hash of the order of all examples seen so far."""
    examples: int
    supervised_tokens: int
    history: tuple[LossPoint, ...]


def save(folder: Path, position: Position, optimizer: FlatAdamW) -> None:
    """Write the state of a training into an empty folder."""
    save_file(optimizer.state(), folder / _OPTIMIZER_FILE)
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda{at}": state for at, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(generators, folder / _RNG_FILE)
    (folder / _POSITION_FILE).write_text(position.model_dump_json() + "\n", encoding="utf-8")


def load(folder: Path, spec_digest: str, data_digest: str, optimizer: FlatAdamW) -> Position:
    """Restore optimizer, trainable values and generators; return the position.

    Raises:
        JobFailed: the checkpoint is of another spec or of other tokens, or not one of ours.
    """
    try:
        position = Position.model_validate_json((folder / _POSITION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise JobFailed(f"not a training checkpoint: {error}", where=str(folder)) from error
    if position.spec != spec_digest:
        raise JobFailed("the checkpoint belongs to a training with another spec", where=str(folder))
    if position.data != data_digest:
        raise JobFailed(
            "the rows make other tokens than when the checkpoint was written", where=str(folder),
            hint="was the tokenizers library or Burnish changed in between? start the training anew",
        )  # fmt: skip
    optimizer.restore(load_file(folder / _OPTIMIZER_FILE), position.step)
    generators = load_file(folder / _RNG_FILE)
    torch.set_rng_state(generators["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([generators[name] for name in sorted(generators) if name != "cpu"])
    return position
