"""The manifest of an artifact: what its digest is the hash of.

It is the JSON list ``[[path, size, sha256], ...]`` of all files, sorted by path, without spaces.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from burnish.core.errors import InvalidRequest
from burnish.core.specs.base import Digest

_CHUNK = 1 << 20


class Entry(NamedTuple):
    """One file: its relative path with ``/``, its size in bytes, the SHA-256 of its content in hexadecimal."""

    path: str
    size: int
    sha256: str


def encode(entries: list[Entry]) -> bytes:
    """Return the manifest's bytes."""
    return json.dumps(sorted(entries), separators=(",", ":"), ensure_ascii=False).encode()


def decode(text: bytes) -> list[Entry]:
    """Return the entries of a manifest.

    Raises:
        ValueError: it is none.
    """
    try:
        return [Entry(str(path), int(size), str(sha256)) for path, size, sha256 in json.loads(text)]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a manifest: {error}") from error


def digest_of_manifest(text: bytes) -> Digest:
    """Return the artifact's digest."""
    return "sha256:" + hashlib.sha256(text).hexdigest()


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield relative path and status of every file below ``folder``, in no particular order.

    Raises:
        InvalidRequest: a link, a device, a file with another name elsewhere, or a name that is no text.
    """
    waiting = [(folder, "")]
    while waiting:
        current, prefix = waiting.pop()
        with os.scandir(current) as found:
            for item in found:
                name = prefix + item.name
                status = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((current / item.name, name + "/"))
                    continue
                _check_plain(name, status)
                yield name, status


def _check_plain(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no plain file"
        raise InvalidRequest(
            f"{name!r} is {what}", where=name, hint="an artifact holds plain files only: copy the content"
        )
    if status.st_nlink != 1:
        raise InvalidRequest(
            f"{name!r} is also known by another name (hard link), so it could change after it was published",
            where=name, hint="copy the content",
        )  # fmt: skip
    if not name.isprintable() or "\\" in name:
        raise InvalidRequest(f"the file name {name!r} is not plain text", where=name, hint="rename the file")


def hash_file(path: Path, *, sync: bool = False) -> tuple[int, str]:
    """Return size and SHA-256 of a file; with ``sync``, its content is on the disk afterwards."""
    hashed, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        buffer = memoryview(bytearray(_CHUNK))
        while read := stream.readinto(buffer):
            hashed.update(buffer[:read])
            size += read
        if sync:
            os.fsync(descriptor)
    return size, hashed.hexdigest()
