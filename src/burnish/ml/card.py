"""The card in an artifact's folder, and this process's memory: what jobs need that never load torch."""

import resource
from pathlib import Path

from burnish.core.errors import BadModel
from burnish.core.specs.model import MODEL_CARD_FILE, ModelCard


def read_card(folder: Path) -> ModelCard:
    """Return the card in an artifact's folder.

    Raises:
        BadModel: there is none or it is not one.
    """
    path = folder / MODEL_CARD_FILE
    try:
        return ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"no readable {MODEL_CARD_FILE}: {error}", where=str(folder)) from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card into an artifact's folder."""
    (folder / MODEL_CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def peak_memory_bytes() -> int:
    """Return the process's peak resident memory."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
