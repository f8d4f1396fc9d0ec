"""Checks of weight files before anything trusts them: sizes that lie, cut files, pickles."""

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors import SafetensorError, safe_open

from burnish.core.errors import BadModel

INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a weight file."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of weights."""
        count = 1
        for side in self.shape:
            count *= side
        return count


def read_safetensors(path: Path) -> list[TensorInfo]:
    """Return the tensors of a safetensors file after checking its header against its size.

    Raises:
        BadModel: the header cannot be read, overlaps, leaves holes or points outside the file.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            found = []
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                found.append(TensorInfo(name, tuple(part.get_shape()), str(part.get_dtype())))
            return found
    except (SafetensorError, OSError) as error:
        raise BadModel(
            f"not a sound safetensors file: {error}", where=str(path), hint="download or export the model again"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model is loaded from, as Transformers chooses them.

    That is ``model.safetensors``, or else those that the index names; where neither is there, all. Some folders hold
    the same weights a second time, for another program (``consolidated.safetensors``): those are never among them.

    Raises:
        BadModel: the index cannot be read, or names a file that is not there or not in the folder itself.
    """
    index, whole = folder / INDEX_FILE, folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(
            f"the index of the weights cannot be read: {error!r}", where=str(index), hint="download the model again"
        ) from error
    for name in sorted(names):
        if Path(name).name != name or not (folder / name).is_file():
            raise BadModel(
                f"the index names {name}, which is not in the folder", where=str(index), hint="download the model again"
            )
    return [folder / name for name in sorted(names)]


def safetensors_in(folder: Path) -> list[TensorInfo]:
    """Return all tensors of a folder's safetensors files, each once.

    Raises:
        BadModel: there are none (perhaps only pickles), or one of them is damaged.
    """
    files = weight_files(folder)
    if not files:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise BadModel(
                f"the weights are pickles ({', '.join(pickles[:3])}), which can run code when they are read",
                where=str(folder),
                hint="save them as safetensors: model.save_pretrained(folder, safe_serialization=True)",
            )
        raise BadModel("no *.safetensors in the folder", where=str(folder), hint="give a folder of a saved model")
    return [tensor for file in files for tensor in read_safetensors(file)]


def read_gguf(path: Path) -> list[TensorInfo]:
    """Return the tensors of a GGUF file after checking every count and offset against the file's size.

    Raises:
        BadModel: a magic, version, count, length or offset that is not true.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        reader = _GgufHeader(stream, size, str(path))
        return reader.tensors()


def quantization_name(tensors: list[TensorInfo]) -> str:
    """Return the tensor type that holds most weights, such as ``Q4_1``."""
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.dtype] += tensor.numel
    return weights.most_common(1)[0][0]


class _GgufHeader:
    """Reads a GGUF header, little-endian, never past the end of the file."""

    def __init__(self, stream: BinaryIO, size: int, where: str) -> None:
        self._stream = stream
        self._size = size
        self._where = where
        self._alignment = _DEFAULT_ALIGNMENT

    def tensors(self) -> list[TensorInfo]:
        if self._take(4) != b"GGUF":
            raise self._bad("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise self._bad(f"version {version} is not one that is read here (2, 3)")
        count, pairs = self._number("<Q"), self._number("<Q")
        # A tensor entry takes at least 24 bytes and a pair 13: larger counts cannot be true.
        if count * 24 > self._size or pairs * 13 > self._size:
            raise self._bad(f"it claims {count} tensors and {pairs} keys, more than fit in {self._size} bytes")
        for _ in range(pairs):
            self._pair()
        entries = [self._entry() for _ in range(count)]
        position = self._stream.tell()
        start = -(-position // self._alignment) * self._alignment
        for info, offset, length in entries:
            if offset % self._alignment or start + offset + length > self._size:
                raise self._bad(f"tensor {info.name} is said to end at byte {start + offset + length} of {self._size}")
        if not entries:
            raise self._bad("it has no tensors")
        return [info for info, _, _ in entries]

    def _entry(self) -> tuple[TensorInfo, int, int]:
        name = self._string()
        dimensions = self._number("<I")
        if dimensions > 8:
            raise self._bad(f"tensor {name} claims {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        kind = self._number("<I")
        offset = self._number("<Q")
        try:
            quantization = GGMLQuantizationType(kind)
        except ValueError:
            raise self._bad(f"tensor {name} has the unknown type {kind}") from None
        info = TensorInfo(name, shape, quantization.name)
        block, width = GGML_QUANT_SIZES[quantization]
        return info, offset, -(-info.numel // block) * width

    def _pair(self) -> None:
        key = self._string()
        kind = self._number("<I")
        if key == "general.alignment" and kind == _UINT32:
            self._alignment = self._number("<I")
            if self._alignment < 1 or self._alignment & (self._alignment - 1):
                raise self._bad(f"an alignment of {self._alignment}")
            return
        self._value(kind)

    def _value(self, kind: int) -> None:
        if kind in _SCALAR_SIZES:
            self._skip(_SCALAR_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY:
            element, length = self._number("<I"), self._number("<Q")
            if length > self._size:
                raise self._bad(f"an array of {length} elements in {self._size} bytes")
            if element in _SCALAR_SIZES:
                self._skip(_SCALAR_SIZES[element] * length)
            elif element == _STRING:
                for _ in range(length):
                    self._skip(self._number("<Q"))
            else:
                raise self._bad(f"an array of type {element}")
        else:
            raise self._bad(f"a value of type {kind}")

    def _string(self) -> str:
        length = self._number("<Q")
        if length > 65535:
            raise self._bad(f"a name of {length} bytes")
        return self._take(length).decode("utf-8", errors="replace")

    def _number(self, form: str) -> int:
        value = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        assert isinstance(value, int)
        return value

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) != length:
            raise self._bad("it ends inside its header")
        return data

    def _skip(self, length: int) -> None:
        position = self._stream.tell() + length
        if position > self._size:
            raise self._bad("it ends inside its header")
        self._stream.seek(position)

    def _bad(self, what: str) -> BadModel:
        return BadModel(f"not a sound GGUF file: {what}", where=self._where, hint="download or convert the model again")
