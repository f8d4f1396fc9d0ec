"""File formats of uploads. A new one is a file here and a line in ``FORMATS``; its docstring is its manual.

Invariant: a format is chosen by what the bytes are, then by the name's ending; a name is never a path.
"""

import unicodedata
from pathlib import Path

from burnish.components.data_management.formats.base import FileFormat, Limits, Problems, Record
from burnish.components.data_management.formats.csv import Csv
from burnish.components.data_management.formats.jsonl import JsonLines
from burnish.components.data_management.formats.parquet import MAGIC as PARQUET_MAGIC
from burnish.components.data_management.formats.parquet import Parquet
from burnish.components.data_management.formats.streams import compression_of, read_chunks
from burnish.core.errors import InvalidRequest, UnsupportedMedia

__all__ = ["FORMATS", "FileFormat", "Limits", "Problems", "Record", "choose_format", "safe_name"]

FORMATS: tuple[FileFormat, ...] = (JsonLines(), Csv(), Parquet())

_NOT_DATA = {
    b"PK\x03\x04": ("a ZIP archive or an Excel sheet", "unpack it, or save the sheet as CSV"),
    b"\x80\x02": ("a pickle", "pickles run code when they are read; write JSON Lines, CSV or Parquet"),
    b"\x80\x03": ("a pickle", "pickles run code when they are read; write JSON Lines, CSV or Parquet"),
    b"\x80\x04": ("a pickle", "pickles run code when they are read; write JSON Lines, CSV or Parquet"),
    b"\x80\x05": ("a pickle", "pickles run code when they are read; write JSON Lines, CSV or Parquet"),
    b"%PDF": ("a PDF", "extract its text into JSON Lines first"),
    b"BZh": ("compressed with bzip2", "use gzip or zstd, or upload it uncompressed"),
    b"\xfd7zXZ": ("compressed with xz", "use gzip or zstd, or upload it uncompressed"),
    b"ARROW1": ("an Arrow IPC file", "write Parquet"),
    b"GGUF": ("a GGUF model", "that is a model, not a dataset"),
}
_COMPRESSION_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")


def choose_format(path: Path, name: str, limits: Limits | None = None) -> FileFormat:
    """Return the format of the file at ``path`` that was uploaded under ``name``.

    Raises:
        InvalidRequest: the file is empty.
        UnsupportedMedia: it is of no format that is read here.
    """
    if path.stat().st_size == 0:
        raise InvalidRequest("the file is empty", where=name, hint="upload a file with at least one row")
    head = next(read_chunks(path, limits or Limits()), b"")[:4096]
    if not head:
        raise InvalidRequest("the file is empty once decompressed", where=name, hint="upload at least one row")
    packed = compression_of(path)
    if head.startswith(PARQUET_MAGIC):
        if packed:
            raise UnsupportedMedia("Parquet inside gzip or zstd", where=name, hint="upload the Parquet file itself")
        return _named("parquet")
    for magic, (what, hint) in _NOT_DATA.items():
        if head.startswith(magic):
            raise UnsupportedMedia(f"the file is {what}", where=name, hint=hint)
    return _by_name(name) or _by_content(head, name)


def safe_name(name: str) -> str:
    """Return ``name`` as something to show and record: its last part, printable, at most 200 characters.

    Never a path: separators of both worlds are cut at, and ``.``, ``..`` and nothing become ``upload``.
    """
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(character for character in last if character.isprintable()).strip()[:200]
    return "upload" if shown.strip(". ") == "" else shown


def _named(name: str) -> FileFormat:
    return next(form for form in FORMATS if form.name == name)


def _by_name(name: str) -> FileFormat | None:
    lowered = name.lower()
    for ending in _COMPRESSION_SUFFIXES:
        lowered = lowered.removesuffix(ending)
    for form in FORMATS:
        if lowered.endswith(tuple(form.suffixes)):
            if form.name == "parquet":
                raise UnsupportedMedia(
                    "the name says Parquet and the bytes do not", where=name, hint="was the file cut or renamed?"
                )
            return form
    return None


def _by_content(head: bytes, name: str) -> FileFormat:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return _named("jsonl")
    endings = ", ".join(ending for form in FORMATS for ending in form.suffixes)
    raise UnsupportedMedia(
        f"the name {name!r} has no ending that is known here", where=name, hint=f"known: {endings} (and .gz, .zst)"
    )
