"""Bytes and lines of a file, decompressed on the way, under limits."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from burnish.components.data_management.formats.base import TOTAL_SIZE, Limits
from burnish.core.errors import InvalidRequest, TooLarge

CHUNK = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Line(NamedTuple):
    """One line's text without its end, its number from 1, and the offset of its first byte after decompression."""

    number: int
    text: str
    offset: int


def compression_of(path: Path) -> str | None:
    """Return ``gzip``, ``zstd`` or None, by the file's first bytes."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if head == ZSTD_MAGIC else None


def read_chunks(path: Path, limits: Limits) -> Iterator[bytes]:
    """Yield the file's decompressed bytes in chunks of at most ``CHUNK``.

    Raises:
        InvalidRequest: the compressed stream is broken or cut.
        TooLarge: more bytes, or a higher ratio, than the limits allow.
    """
    compressed = path.stat().st_size
    total = 0
    with _open_stream(path) as stream:
        while chunk := _read(stream, total):
            total += len(chunk)
            if total > limits.total_bytes:
                raise TooLarge(
                    f"the file holds more than {limits.total_bytes} bytes once decompressed",
                    where=TOTAL_SIZE,
                    hint="upload it in parts, as several datasets or versions",
                )
            if total > limits.ratio_from_bytes and total > limits.ratio * compressed:
                raise TooLarge(
                    f"{compressed} compressed bytes became more than {total}: over {limits.ratio} to 1",
                    where=f"byte {total} after decompression",
                    hint="this looks like a decompression bomb; if it is not, upload the file uncompressed",
                )
            yield chunk


def read_lines(path: Path, limits: Limits) -> Iterator[Line]:
    r"""Yield the file's lines as text: UTF-8 with or without a mark, ended by ``\n`` or ``\r\n``.

    Raises:
        InvalidRequest: bytes that are not UTF-8; the message has line, column and byte offset.
        TooLarge: a line longer than ``limits.line_bytes``; it is refused as soon as that much was read.
    """
    rest = b""
    number, offset = 0, 0
    for chunk in _without_mark(read_chunks(path, limits)):
        pieces = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            number += 1
            _check_length(len(piece), number, limits)
            yield Line(number, _decode(piece, number, offset), offset)
            offset += len(piece) + 1
        _check_length(len(rest), number + 1, limits)
    if rest:
        yield Line(number + 1, _decode(rest, number + 1, offset), offset)


def _check_length(length: int, number: int, limits: Limits) -> None:
    if length > limits.line_bytes:
        raise TooLarge(
            f"line {number} is longer than {limits.line_bytes} bytes",
            where=f"line {number}",
            hint="is it one object or record a line? Split rows that really are that long",
        )


def _decode(piece: bytes, number: int, offset: int) -> str:
    try:
        text = piece.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"line {number} is not UTF-8: byte 0x{piece[error.start]:02x} at column {error.start + 1} of the line, "
            f"byte {offset + error.start} of the file",
            where=f"line {number}, byte {offset + error.start}",
            hint="save the file as UTF-8, for example: iconv -f LATIN1 -t UTF-8 in.csv > out.csv",
        ) from None
    return text[:-1] if text.endswith("\r") else text


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(chunks, b"")
    while len(first) < 4 and (more := next(chunks, b"")):
        first += more
    for mark, name in _OTHER_BOMS.items():
        if first.startswith(mark):
            raise InvalidRequest(
                f"the file is {name}, not UTF-8", where="byte 0", hint=f"iconv -f {name} -t UTF-8 in > out"
            )
    yield first.removeprefix(_UTF8_BOM)
    yield from chunks


@contextmanager
def _open_stream(path: Path) -> Iterator[_Readable]:
    kind = compression_of(path)
    if kind == "zstd":
        import pyarrow as pa  # here, because a server that reads no such file should not pay for it

        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield stream
        return
    opened: BinaryIO
    with gzip.open(path) if kind == "gzip" else path.open("rb") as opened:  # type: ignore[assignment]
        yield opened


def _read(stream: _Readable, offset: int) -> bytes:
    try:
        return stream.read(CHUNK)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the file's
        raise InvalidRequest(
            f"the compressed file is broken or cut: {error}",
            where=f"after byte {offset} of what is compressed",
            hint="compress it again, or upload it uncompressed",
        ) from None
