"""Reads and writes the weight files of a package: one memory map per file, every blob checked before it is touched.

A weight file is a 64-byte header (uint32 count, uint32 version 2, zeros), then for every blob a 64-byte record and its bytes, both on
64-byte boundaries. A record holds uint32 0xDEADBEEF, uint32 element type, uint64 bytes, uint64 offset of the bytes, uint64 unused bits of
the last byte. A program refers to the record. Elements of less than a byte are one stream of bits, lowest bit first.
Source: the MILBlob part of coremltools (StorageFormat.hpp, BlobDataType.hpp); the tests write with its own writer.
"""

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError

# Name -> (code in a weight file, bits per element, numpy type that holds one element).
BLOB_DTYPES: dict[str, tuple[int, int, type[np.generic]]] = {
    "float16": (1, 16, np.float16),
    "float32": (2, 32, np.float32),
    "uint8": (3, 8, np.uint8),
    "int8": (4, 8, np.int8),
    "int16": (6, 16, np.int16),
    "uint16": (7, 16, np.uint16),
    "int4": (8, 4, np.int8),
    "uint1": (9, 1, np.uint8),
    "uint2": (10, 2, np.uint8),
    "uint4": (11, 4, np.uint8),
    "uint3": (12, 3, np.uint8),
    "uint6": (13, 6, np.uint8),
    "int32": (14, 32, np.int32),
    "uint32": (15, 32, np.uint32),
}

_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ")
_RECORD_BYTES = 64
_VERSION = 2


def packed_bytes(dtype: str, count: int) -> int:
    """Bytes that ``count`` elements of ``dtype`` take when stored."""
    return (count * BLOB_DTYPES[dtype][1] + 7) // 8


def unpack(packed: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    """The elements of ``dtype`` in the bytes ``packed`` (uint8); a view where an element is whole bytes, else one byte an element."""
    _, bits, numpy_type = BLOB_DTYPES[dtype]
    count = math.prod(shape)
    if bits >= 8:
        return packed.view(numpy_type).reshape(shape)
    stream = np.unpackbits(packed.view(np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    codes = np.zeros(count, np.uint8)
    for place in range(bits):
        codes |= stream[:, place] << place
    if dtype == "int4":
        return ((codes ^ 8).astype(np.int8) - 8).reshape(shape)
    return codes.reshape(shape)


def blob_of(array: Array, dtype: str) -> "Blob":
    """``array`` as a weight of ``dtype``; the inverse of ``unpack``."""
    code, bits, numpy_type = BLOB_DTYPES[dtype]
    data = np.ascontiguousarray(array, numpy_type).reshape(-1)
    if bits >= 8:
        return Blob(code, 0, data.view(np.uint8))
    stream = (data.view(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    packed = np.packbits(stream.reshape(-1), bitorder="little")
    return Blob(code, packed.size * 8 - stream.size, packed)


def release_pages(array: Array) -> None:
    """Frees the memory of the mapped file behind ``array``, if there is one; later reads map it again."""
    mapped = _mapping(array)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def is_mapped(array: Array) -> bool:
    """Whether ``array`` is a view of a weight file."""
    return _mapping(array) is not None


def _mapping(array: Array) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """One weight as it is stored: the fields of its record, and its bytes (uint8), a view of the file.

    >>> blob = weights.blob(64)
    >>> offsets = write_blobs(Path("weight.bin"), [blob])
    """

    code: int
    unused_bits: int
    content: Array


def write_blobs(path: Path, blobs: Sequence[Blob]) -> list[int]:
    """Writes a weight file; returns the offsets of the records, by which a program refers to them."""
    offsets = []
    with path.open("wb") as file:
        file.write(struct.pack("<II", len(blobs), _VERSION).ljust(_RECORD_BYTES, b"\0"))
        for blob in blobs:
            offset = file.tell()
            offsets.append(offset)
            record = _RECORD.pack(_SENTINEL, blob.code, blob.content.nbytes, offset + _RECORD_BYTES, blob.unused_bits)
            file.write(record.ljust(_RECORD_BYTES, b"\0"))
            file.write(blob.content.data)
            file.write(b"\0" * (-blob.content.nbytes % _RECORD_BYTES))
    return offsets


class WeightFile:
    """One weight file, mapped copy-on-write: arrays look writable to torch, and the file never changes.

    >>> weights = WeightFile(Path("encoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"), "encoder.mlpackage")
    >>> weights.read(64, "float16", (256, 64))
    """

    def __init__(self, path: Path, label: str) -> None:
        self._label = label
        try:
            size = path.stat().st_size
            if size < _RECORD_BYTES:
                raise BundleError(f"{label}: the weight file has {size} bytes and no room for its header; it was cut short")
            with path.open("rb") as stream:
                self._bytes: Array = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        except OSError as error:
            raise BundleError(f"{label}: the weight file cannot be read ({error.strerror or error})") from error
        version = int(struct.unpack_from("<I", self._bytes[4:8].tobytes())[0])
        if version != _VERSION:
            raise BundleError(f"{label}: the weight file has format version {version}; only {_VERSION} is known")

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """The tensor whose record starts at ``offset``; its element type and size must be the declared ones."""
        blob = self.blob(offset)
        if blob.code != BLOB_DTYPES[dtype][0]:
            stored = next((name for name, entry in BLOB_DTYPES.items() if entry[0] == blob.code), f"type {blob.code}")
            raise BundleError(f"{self._label}: the weight at byte {offset} is {stored}, the program declares {dtype}")
        length, expected = len(blob.content), packed_bytes(dtype, math.prod(shape))
        if length != expected:
            raise BundleError(f"{self._label}: the weight at byte {offset} has {length} bytes; {dtype} {list(shape)} needs {expected}")
        return unpack(blob.content, dtype, shape)

    def blob(self, offset: int) -> Blob:
        """The weight whose record starts at ``offset``, as it is stored."""
        size = len(self._bytes)
        if offset % _RECORD_BYTES or offset < _RECORD_BYTES or offset + _RECORD_BYTES > size:
            raise BundleError(f"{self._label}: a weight points to byte {offset} of a file of {size} bytes")
        sentinel, code, length, start, unused_bits = _RECORD.unpack(self._bytes[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise BundleError(f"{self._label}: no weight begins at byte {offset}; the file and the program do not belong together")
        if start + length > size or start % _RECORD_BYTES:
            raise BundleError(f"{self._label}: the weight at byte {offset} lies at {start} to {start + length} of a file of {size} bytes")
        return Blob(code, unused_bits, self._bytes[start : start + length])
