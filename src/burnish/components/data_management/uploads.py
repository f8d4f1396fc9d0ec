"""Receiving an upload: from a request's body to a file that nobody else can see.

The file has no name from the moment it is made, so the kernel takes it back however the server ends.
"""

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from burnish.core.errors import InvalidRequest, MalformedRequest, OutOfDisk, TooLarge
from burnish.infra.home import require_disk

__all__ = ["Spool", "receive"]

_FLUSH_BYTES = 1 << 20
_CHECK_DISK_EVERY = 64 << 20
_MAX_FIELDS = 20
_FIELD_BYTES = 64 << 10


class Spool:
    """A nameless file below ``folder`` that a body is written to. Leaving the context frees it.

    Args:
        folder: Made if it is not there.
        max_bytes: More is :class:`TooLarge`.
        reserve: Bytes that stay free on the disk.
    """

    def __init__(self, folder: Path, max_bytes: int, reserve: int) -> None:
        self._folder = folder
        self._max = max_bytes
        self._reserve = reserve
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._checked_at = 0
        self.size = 0
        self.descriptor = -1

    async def __aenter__(self) -> Self:
        self.descriptor = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    @property
    def digest(self) -> str:
        """``sha256:...`` of everything written."""
        return "sha256:" + self._hash.hexdigest()

    async def write(self, data: bytes) -> None:
        """Append.

        Raises:
            TooLarge: that is more than ``max_bytes``.
            OutOfDisk: the disk would fall below its reserve.
        """
        self.size += len(data)
        if self.size > self._max:
            raise TooLarge(
                f"the upload is larger than {self._max} bytes",
                where="body",
                hint="upload it in parts, compress it, or raise BURNISH_UPLOAD_MAX_BYTES",
            )
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _FLUSH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits in memory."""
        data, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        if data:
            await asyncio.to_thread(self._append, data)

    def _open(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        require_disk(self._folder, self._reserve)
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        os.unlink(name)
        return descriptor

    def _append(self, data: bytes) -> None:
        if self.size - self._checked_at > _CHECK_DISK_EVERY:
            self._checked_at = self.size
            require_disk(self._folder, self._reserve)
        self._hash.update(data)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfDisk(
                    "the disk is full; nothing of the upload was kept", where=str(self._folder), hint="free space"
                ) from error
            raise


async def receive(body: AsyncIterator[bytes], content_type: str, spool: Spool) -> dict[str, str]:
    """Write the body's file into ``spool`` and return the form's other fields.

    A body that is no form is the file itself, and there are no fields. The file's name in a form is the field
    ``filename``, unless a field of that name says otherwise.

    Raises:
        MalformedRequest: a form that is cut or broken.
        InvalidRequest: no file in it, or more than one.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        async for chunk in body:
            await spool.write(chunk)
        await spool.flush()
        return {}
    if not (boundary := options.get(b"boundary")):
        raise MalformedRequest("the form has no boundary", where="Content-Type", hint="let the client set this header")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in body:
            parser.write(chunk)
            for piece in form.take():
                await spool.write(piece)
    except FormParserError as error:
        raise MalformedRequest(f"the form cannot be read: {error}", where="body") from None
    if not form.ended:
        raise MalformedRequest("the form is cut: its last boundary is missing", where="body", hint="send it again")
    await spool.flush()
    if not form.files:
        raise InvalidRequest("the form has no file", where="file", hint="send the file as the part `file`")
    return {**({"filename": form.file_name} if form.file_name else {}), **form.fields}


class _Form:
    """Collects a form's fields; hands out its one file's bytes as they come."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.files = 0
        self.file_name = ""
        self.ended = False
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._is_file = False
        self._field = b""
        self._pieces: list[bytes] = []

    def callbacks(self) -> Any:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._on_end,
            "on_end": self._finish,
        }

    def take(self) -> list[bytes]:
        """Return the file's bytes since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        self._headers, self._field = {}, b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check(self._header)

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check(self._value)

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = b"filename" in options or self._name == "file"
        if not self._is_file:
            if not self._name:
                raise InvalidRequest("a part of the form has no name", where="body", hint="name each part: `file`, ...")
            return
        self.files += 1
        if self.files > 1:
            raise InvalidRequest("the form has more than one file", where="file", hint="upload one file at a time")
        self.file_name = options.get(b"filename", b"").decode(errors="replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
            return
        self._field += data[start:end]
        self._check(self._field)

    def _on_end(self) -> None:
        if self._is_file:
            return
        if self._name in self.fields or len(self.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"the field {self._name!r} stands twice, or there are too many", where=self._name)
        try:
            self.fields[self._name] = self._field.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"the field {self._name!r} is not UTF-8", where=self._name) from None

    def _finish(self) -> None:
        self.ended = True

    def _check(self, value: bytes) -> None:
        if len(value) > _FIELD_BYTES:
            raise InvalidRequest(f"a field or header of the form is longer than {_FIELD_BYTES} bytes", where="body")
