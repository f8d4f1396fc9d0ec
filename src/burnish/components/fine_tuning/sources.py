"""Where a base model may come from, looked at without loading anything."""

import hashlib
import os
import re
from pathlib import Path

from burnish.core.errors import FieldProblem

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_HEAD_BYTES = 1 << 16


def is_hub_name(source: str) -> bool:
    """Tell whether a source reads as ``organisation/name``, whatever folders of such a name there may be here."""
    return bool(_HUB_NAME.match(source))


def problem_with(source: str) -> FieldProblem | None:
    """Return what is wrong with a source, if that can be seen from here."""
    path = _local(source)
    if path.is_absolute():
        if path.is_dir():
            return _problem_with_folder(path)
        if path.is_file():
            return _problem_with_file(path)
    elif is_hub_name(source):
        return None
    elif source.startswith(".") or source.endswith((".gguf", "/")):
        return FieldProblem(
            where="spec.source", message=f"{source} is a path from a folder that the server does not know",
            hint="give an absolute path; `burnish submit` and the Python client do that themselves",
        )  # fmt: skip
    return no_model_at(source)


def no_model_at(source: str) -> FieldProblem:
    """Return what is said of a source where nothing is that could be imported."""
    return FieldProblem(
        where="spec.source", message=f"there is no model at {source}",
        hint="a folder of safetensors, a GGUF file, or a hub name such as org/name",
    )  # fmt: skip


def _local(source: str) -> Path:
    """Return the source as a path; one that is not absolute is never looked for."""
    return Path(source).expanduser()


def fingerprint(source: str) -> str | None:
    """Return a hash that changes when a local source's files change; None for a hub name.

    It covers names, sizes, times of change and the first 64 KiB of each file: reading whole models at each submit
    would take longer than importing them.
    """
    path = _local(source)
    if not path.is_absolute() or not path.exists():
        return None
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    hashed = hashlib.sha256()
    for file in files:
        stat = file.stat()
        hashed.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        with file.open("rb") as stream:
            hashed.update(stream.read(_HEAD_BYTES))
    return "sha256:" + hashed.hexdigest()


def weight_bytes(source: str) -> int | None:
    """Return the size of a local source's weights; None for a hub name."""
    path = _local(source)
    if path.is_absolute() and path.is_file():
        return path.stat().st_size
    if path.is_absolute() and path.is_dir():
        files = [file for file in path.glob("*.safetensors") if not file.name.startswith("consolidated")]
        return sum(file.stat().st_size for file in files)
    return None


def _problem_with_folder(folder: Path) -> FieldProblem | None:
    names = os.listdir(folder)
    if any(name.endswith(".safetensors") for name in names):
        if "config.json" in names:
            return None
        return FieldProblem(where="spec.source", message=f"{folder} has safetensors but no config.json")
    if any(Path(name).suffix in _PICKLES for name in names):
        return FieldProblem(
            where="spec.source", message=f"the weights in {folder} are pickles, which can run code when they are read",
            hint="save the model as safetensors",
        )  # fmt: skip
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return FieldProblem(
            where="spec.source", message=f"{folder} has no safetensors", hint=f"did you mean {folder / gguf[0]}?"
        )
    return FieldProblem(where="spec.source", message=f"{folder} has no safetensors", hint="give a saved model's folder")


def _problem_with_file(path: Path) -> FieldProblem | None:
    if path.suffix in _PICKLES:
        return FieldProblem(
            where="spec.source", message=f"{path} is a pickle, which can run code when it is read",
            hint="save the model as safetensors",
        )  # fmt: skip
    if path.suffix.lower() != ".gguf":
        return FieldProblem(
            where="spec.source", message=f"{path} is not a GGUF file", hint="give the folder that holds it"
        )
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            return FieldProblem(where="spec.source", message=f"{path} does not begin as a GGUF file does")
    return None
