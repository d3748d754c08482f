"""How an array lies in ``store.zarr``: metadata documents, chunk shapes, names of chunk files, and their bytes.

The documents are plain Zarr v3. They are built here rather than by zarr, so that the training process neither loads
zarr nor runs its event loop, and so that a chunk can be encoded in any thread. Tests hold the result against zarr and
tensorstore. Rule for maintainers: what is written is fixed by FORMAT.md; a change here is a change of the format.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.storage.format import FORMAT_VERSION, Json, crc32, encode_json, storage_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ArraySpec",
    "BulkLayout",
    "ViewLayout",
    "bulk_layout",
    "check_node",
    "group_document",
    "node_bytes",
    "seal_node",
]

INNER_BYTES = 2**20
"""What an inner chunk aims at; 0.25-2 MiB measured well for both a whole snapshot and a few units of many."""
LARGEST_CHUNK = 2**21
ZSTD_LEVEL = 1
LEAST_GAIN = 1.12
SAMPLE_BYTES = 2**13
"""What zstd hardly makes smaller is stored as it is, in a frame that any zstd reads: dense float32 gains 1.08 and costs
seven times as much; dense bfloat16 gains 1.29, float32 behind a ReLU 1.77. Measured on three samples of a chunk."""
ZSTD_MAGIC = 0xFD2FB528
ZSTD_BLOCK = 2**17
"""A frame, and its largest block, as RFC 8878 has them."""
CRC_WITH_ITS_CRC = 0x48674BC7

_SEAL_NODE = re.compile(rb',"checksum":"([0-9a-f]{8})"\}\}\n\Z')


@dataclass(frozen=True)
class ArraySpec:
    """What is recorded under one name at each snapshot.

    Attributes
    ----------
    shape
        Shape of one snapshot, without the snapshot axis.
    dtype
        Logical dtype: "float32", "float16", "bfloat16" (arrives as uint16 bit patterns), ...
    dimensions
        Names of the axes of `shape`, all different.
    attributes
        Anything else that describes it; stored with the array.
    rows
        Rows of the first axis in one file, where a snapshot is cut into parts that different ranks write; None: one
        file has all. The last part may be shorter.
    """

    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    attributes: Mapping[str, Json] = field(default_factory=dict)
    rows: int | None = None

    def check(self, name: str) -> None:
        """Raise InvalidArgumentError, naming `name`, unless the spec can be stored."""
        storage_dtype(self.dtype)
        if any(length < 1 for length in self.shape):
            raise InvalidArgumentError(f"{name}: shape {self.shape} has an empty axis; nothing can be recorded there.")
        if len(self.dimensions) != len(self.shape) or len({*self.dimensions, "snapshot"}) != len(self.shape) + 1:
            raise InvalidArgumentError(
                f"{name}: dimensions {self.dimensions} must name the {len(self.shape)} axes of {self.shape}, each "
                'differently, and none "snapshot".'
            )
        if self.rows is not None and not (self.shape and 1 <= self.rows <= self.shape[0]):
            raise InvalidArgumentError(f"{name}: parts of {self.rows} rows do not fit its shape {self.shape}.")


@dataclass(frozen=True)
class BulkLayout:
    """Layout of an array whose every snapshot is one immutable file, or one for each of its parts.

    Attributes
    ----------
    path
        Path of the array below ``store.zarr``.
    shape
        Shape of one snapshot.
    dtype
        Logical dtype.
    dimensions
        Names of the axes of `shape`.
    inner
        Shape of an inner chunk, without the snapshot axis. Equal to `chunk` where the file is one chunk and no shard.
    attributes
        Attributes of the array.
    chunk
        Shape of one file. It cuts the first axis of `shape` into parts; what the last one has beyond `shape` is fill.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    inner: tuple[int, ...]
    attributes: Mapping[str, Json]
    chunk: tuple[int, ...]

    @property
    def parts(self) -> int:
        """Number of files of one snapshot."""
        return -(-self.shape[0] // self.chunk[0]) if self.shape else 1

    def part_shape(self, part: int) -> tuple[int, ...]:
        """Return the shape of a part without its fill: shorter than `chunk` at the end of the axis."""
        if not self.shape:
            return ()
        return (min(self.chunk[0], self.shape[0] - part * self.chunk[0]), *self.shape[1:])

    @property
    def stored(self) -> np.dtype[Any]:
        """Dtype on disk, little-endian."""
        return np.dtype(storage_dtype(self.dtype)).newbyteorder("<")

    @property
    def fill_value(self) -> Json:
        """Fill value as ``zarr.json`` has it; the attribute ``fill`` overrides what the dtype says."""
        return self.attributes.get("fill", _fill_value(self.dtype))

    @property
    def fill(self) -> Any:
        """Fill value as numpy has it."""
        value = self.fill_value
        if isinstance(value, list):
            return complex(*(float(part) for part in value))
        return float(value) if isinstance(value, str) else value

    @property
    def nbytes(self) -> int:
        """Bytes of one snapshot before compression."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def inner_nbytes(self) -> int:
        """Bytes of one inner chunk before compression."""
        return math.prod(self.inner) * self.stored.itemsize

    def document(self, length: int) -> dict[str, Json]:
        """Return the Zarr v3 metadata of the array with `length` snapshots."""
        codecs: list[Json] = [
            {"name": "bytes", "configuration": {"endian": "little"}} if self.stored.itemsize > 1 else {"name": "bytes"},
            {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
            {"name": "crc32c"},
        ]
        if self.inner != self.chunk:
            index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
            sharding = {
                "chunk_shape": [1, *self.inner],
                "codecs": codecs,
                "index_codecs": index_codecs,
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return array_document(
            shape=(length, *self.shape),
            chunk=(1, *self.chunk),
            data_type=self.stored.name,
            fill_value=self.fill_value,
            codecs=codecs,
            dimensions=("snapshot", *self.dimensions),
            attributes=self.attributes,
        )

    def file(self, index: int, part: int = 0) -> str:
        """Return the path below ``store.zarr`` of the file of one part of a snapshot."""
        return f"{self.path}/{chunk_name((index, *(part if axis == 0 else 0 for axis in range(len(self.shape)))))}"

    def files(self, index: int) -> list[str]:
        """Return the paths below ``store.zarr`` of all files of a snapshot."""
        return [self.file(index, part) for part in range(self.parts)]

    def pieces(self, data: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the inner chunks of one part of a snapshot in C order, as views; each can be compressed by itself.

        Parameters
        ----------
        data
            The part in the dtype on disk (bfloat16: uint16 bit patterns), shape `chunk` or shorter along its first
            axis; the rest is filled.
        """
        array = np.asarray(data, dtype=self.stored)
        if self.chunk and len(array) < self.chunk[0]:
            whole = np.full(self.chunk, self.fill, dtype=self.stored)
            whole[: len(array)] = array
            array = whole
        array = array.reshape(self.chunk)
        ranges = [range(0, length, step) for length, step in zip(self.chunk, self.inner, strict=True)]
        for starts in itertools.product(*ranges):
            yield array[tuple(slice(start, start + step) for start, step in zip(starts, self.inner, strict=True))]

    def assemble(self, compressed: Sequence[bytes | memoryview]) -> bytes:
        """Return the bytes of the file that stores one part, from its compressed inner chunks in C order.

        Every inner chunk is there, also one of fill values only: what is there must never look like what is missing.
        """
        return b"".join([*compressed, self.index([len(piece) for piece in compressed])])

    def index(self, lengths: Sequence[int]) -> bytes:
        """Return what follows the compressed inner chunks of a file, whose lengths are given in bytes."""
        if self.inner == self.chunk:
            return b""
        ends = np.cumsum(lengths)
        table = np.stack([ends - lengths, lengths], axis=1)
        return _with_crc(table.astype("<u8").tobytes())

    def encode(self, data: NDArray[Any]) -> bytes:
        """Return the bytes of the file that stores one part of a snapshot, made in this thread."""
        return self.assemble([compress(piece) for piece in self.pieces(data)])


@dataclass(frozen=True)
class ViewLayout:
    """Layout of an array that is derived from the commit log: appended to along its first axis, never compressed.

    Attributes
    ----------
    path
        Path of the array below ``store.zarr``.
    dtype
        "int64" or "float64".
    dimensions
        Names of all axes.
    trailing
        Lengths of the axes after the first.
    rows
        Rows per chunk.
    attributes
        Attributes of the array.
    """

    path: str
    dtype: str
    dimensions: tuple[str, ...]
    trailing: tuple[int, ...]
    rows: int
    attributes: Mapping[str, Json]

    def document(self, length: int) -> dict[str, Json]:
        """Return the Zarr v3 metadata of the array with `length` rows."""
        return array_document(
            shape=(length, *self.trailing),
            chunk=(self.rows, *self.trailing),
            data_type=self.dtype,
            fill_value=self.fill,
            codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            dimensions=self.dimensions,
            attributes=self.attributes,
        )

    @property
    def fill(self) -> int | str:
        """Value beyond the last row."""
        return "NaN" if self.dtype == "float64" else 0

    def file(self, chunk: int) -> str:
        """Return the path below ``store.zarr`` of the chunk that starts at row ``chunk * rows``."""
        return f"{self.path}/{chunk_name((chunk, *(0 for _ in self.trailing)))}"

    def encode(self, values: NDArray[Any]) -> bytes:
        """Return the bytes of one chunk file; `values` has at most :attr:`rows` rows, the rest is filled."""
        block = np.full(
            (self.rows, *self.trailing), float("nan") if self.dtype == "float64" else 0, dtype="<" + self.code
        )
        block[: len(values)] = values
        return _with_crc(block.tobytes())

    @property
    def code(self) -> str:
        """Numpy's short name of the dtype."""
        return "f8" if self.dtype == "float64" else "i8"

    def decode(self, data: bytes) -> NDArray[Any] | None:
        """Return the values of a chunk file, shape (rows, ...), or None where its bytes are not what they should be."""
        expected = self.rows * math.prod(self.trailing) * 8
        if len(data) != expected + 4 or _with_crc(data[:-4]) != data:
            return None
        return np.frombuffer(data[:-4], dtype="<" + self.code).reshape(self.rows, *self.trailing)


def bulk_layout(path: str, spec: ArraySpec, attributes: Mapping[str, Json]) -> BulkLayout:
    """Choose the layout of an array from what it holds.

    One file per part of a snapshot. It is a single chunk up to 2 MiB, else a shard of inner chunks near 1 MiB whose
    shape divides the part's exactly: cut along the last axis (units), and along others only where that is not enough.
    """
    itemsize = np.dtype(storage_dtype(spec.dtype)).itemsize
    chunk = spec.shape if spec.rows is None else (spec.rows, *spec.shape[1:])
    return BulkLayout(
        path=path,
        shape=spec.shape,
        dtype=spec.dtype,
        dimensions=spec.dimensions,
        inner=inner_chunk(chunk, itemsize),
        attributes={**spec.attributes, **attributes, "logical_dtype": spec.dtype},
        chunk=chunk,
    )


def inner_chunk(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the shape of an inner chunk for a snapshot of `shape`; equal to `shape` where no shard is needed."""
    chunk = shape
    # The last axis of activations is the unit axis: reading 64 units of all snapshots must not read the rest.
    for axis in reversed(range(len(shape))):
        nbytes = math.prod(chunk) * itemsize
        if nbytes <= LARGEST_CHUNK:
            break
        rest = nbytes // chunk[axis]
        divisors = [d for d in range(1, chunk[axis] + 1) if chunk[axis] % d == 0]
        best = min(divisors, key=lambda d: abs(math.log2(d * rest / INNER_BYTES)))
        chunk = (*chunk[:axis], best, *chunk[axis + 1 :])
    return chunk


def array_document(
    *,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    data_type: str,
    fill_value: Json,
    codecs: list[Json],
    dimensions: tuple[str, ...],
    attributes: Mapping[str, Json],
) -> dict[str, Json]:
    """Return a Zarr v3 array metadata document."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill_value,
        "codecs": codecs,
        "dimension_names": list(dimensions),
        "attributes": dict(attributes),
    }


def group_document(attributes: Mapping[str, Json] | None = None) -> dict[str, Json]:
    """Return a Zarr v3 group metadata document."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


def seal_node(head: str, attributes: Mapping[str, Json]) -> bytes:
    """Return a ``zarr.json`` from the text of its other members and its attributes, which come last with the checksum.

    The checksum covers every byte before the comma in front of it, as in :func:`format.seal`; it sits in the
    attributes because Zarr allows no other place. ``element_version`` keeps the attributes from being empty.
    """
    body = {**attributes, "element_version": FORMAT_VERSION}
    covered = f'{head.removesuffix("}")},"attributes":{encode_json(body).removesuffix("}")}'.encode()
    return covered + f',"checksum":"{crc32(covered)}"}}}}\n'.encode()


def node_bytes(document: Mapping[str, Json]) -> bytes:
    """Return the sealed ``zarr.json`` of an array or group metadata document."""
    head = encode_json({key: value for key, value in document.items() if key != "attributes"})
    return seal_node(head, document["attributes"])


def check_node(data: bytes) -> bool:
    """Return whether the bytes of a ``zarr.json`` are as they were sealed."""
    match = _SEAL_NODE.search(data[-64:])
    return match is not None and crc32(data[: len(data) - len(match.group(0))]) == match.group(1).decode()


def chunk_name(position: tuple[int, ...]) -> str:
    """Return the file name of the chunk at a position of the chunk grid."""
    return ".".join(("c", *map(str, position)))


def _fill_value(dtype: str) -> Json:
    """Return the fill value: NaN where the dtype has one, so that data that is not there never looks like data."""
    if dtype == "bfloat16":
        return 0x7FC0
    if dtype.startswith("float"):
        return "NaN"
    if dtype.startswith("complex"):
        return ["NaN", "NaN"]
    return False if dtype == "bool" else 0


def _with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def without_crc(data: bytes) -> memoryview:
    """Return data without the crc32c at its end.

    Raises
    ------
    ValueError
        It is not the crc32c of the data.
    """
    # Data followed by its own crc32c has this one: no copy without the last bytes is needed.
    if google_crc32c.value(data) != CRC_WITH_ITS_CRC:
        raise ValueError("its crc32c does not match")
    return memoryview(data)[:-4]


def compress(piece: NDArray[Any]) -> bytes | memoryview:
    """Return the bytes of an inner chunk: zstd, then the crc32c of that. Releases the GIL while it compresses."""
    # numcodecs takes 0.1 s to import; only a process that writes pays for it.
    from numcodecs import zstd  # type: ignore[import-untyped]

    data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
    if data.nbytes >= 16 * SAMPLE_BYTES:
        middle = data.nbytes // 2
        sample = np.concatenate([data[:SAMPLE_BYTES], data[middle : middle + SAMPLE_BYTES], data[-SAMPLE_BYTES:]])
        if sample.nbytes < LEAST_GAIN * len(zstd.compress(sample, ZSTD_LEVEL)):
            return store_uncompressed(data)
    return _with_crc(zstd.compress(data, ZSTD_LEVEL))


def decompress(data: bytes | memoryview, out: NDArray[Any]) -> None:
    """Decode the zstd frame of an inner chunk into an array of its size. Releases the GIL meanwhile.

    Raises
    ------
    RuntimeError, ValueError
        No such frame, or one of another size.
    """
    from numcodecs import zstd

    size = _content_size(data)
    if size == out.nbytes:
        zstd.decompress(data, out)
        return
    # Written by others, of which zstd would fill a beginning of `out` and not say so.
    values = zstd.decompress(data)
    if len(values) != out.nbytes:
        raise ValueError(f"a chunk of {len(values)} bytes where {out.nbytes} belong")
    out[...] = np.frombuffer(values, out.dtype).reshape(out.shape)


def _content_size(frame: bytes | memoryview) -> int:
    """Return how many bytes a zstd frame says it holds (RFC 8878, section 3.1.1.1); -1 where it does not say."""
    descriptor = frame[4] if len(frame) > 4 else 0
    has_window = not descriptor & 0x20
    length = (0 if has_window else 1, 2, 4, 8)[descriptor >> 6]
    start = 5 + has_window + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(frame[start : start + length], "little")
    return size + 256 if length == 2 else size if length else -1


def store_uncompressed(data: NDArray[np.uint8]) -> memoryview:
    """Return a zstd frame that holds data as it is, then the crc32c of that; copies the data once.

    Parameters
    ----------
    data
        uint8, shape (n,), 1 byte to 4 GiB.
    """
    full, rest = divmod(data.nbytes, ZSTD_BLOCK)
    count = full + (rest > 0)
    out = np.empty(9 + 3 * count + data.nbytes + 4, np.uint8)
    # One segment (0x20) whose length stands in four bytes (0x80).
    out[:9] = _as_bytes(struct.pack("<IBI", ZSTD_MAGIC, 0xA0, data.nbytes))
    # Raw blocks, each behind three bytes: its length from bit 3 on, its type (0) in bits 1 and 2, bit 0 in the last.
    blocks = out[9 : 9 + full * (ZSTD_BLOCK + 3)].reshape(full, ZSTD_BLOCK + 3)
    blocks[:, :3] = _as_bytes(struct.pack("<I", ZSTD_BLOCK << 3)[:3])
    blocks[:, 3:] = data[: full * ZSTD_BLOCK].reshape(full, ZSTD_BLOCK)
    if rest:
        block = out[-4 - rest - 3 : -4]
        block[:3] = _as_bytes(struct.pack("<I", rest << 3)[:3])
        block[3:] = data[-rest:]
    out[9 + (count - 1) * (ZSTD_BLOCK + 3)] |= 1
    out[-4:] = _as_bytes(struct.pack("<I", google_crc32c.value(out[:-4])))
    return out.data


def _as_bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
