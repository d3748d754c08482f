"""Names, versions, sealed JSON documents and number encodings of the format. Normative text: ``recorder/FORMAT.md``.

This module needs the standard library and numpy, so that reading what a recording is never loads zarr or torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, UnsupportedVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "STREAMS",
    "Json",
    "bfloat16_to_float32",
    "check_version",
    "crc32",
    "decode_number",
    "encode_component",
    "encode_json",
    "read_sealed",
    "seal",
    "storage_dtype",
    "unseal",
]

Json: TypeAlias = Any
"""Anything that JSON holds: None, bool, int, float, str, a list or a mapping with string keys of these."""

FORMAT_NAME = "dynome-recording"
FORMAT_VERSION = "1.1"

RUN_FILE = "run.json"
COMMITS_FOLDER = "commits"
STORE_FOLDER = "store.zarr"
ANALYSIS_FOLDER = "analysis.zarr"
QUARANTINE_FOLDER = "quarantine"
LOCK_FILE = "recorder.lock"
PARTIAL_SUFFIX = ".partial"

STREAMS: tuple[str, ...] = ("probe", "weights", "batches")
"""Every stream that the format knows; a recording shows the first two, and batches where it records them."""

DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64", "complex64", "complex128", "bool"]
)
"""Types that Zarr stores as they are. bfloat16 is stored as its bit pattern, see :func:`storage_dtype`."""

_SEAL_LINE = re.compile(rb',"checksum":"([0-9a-f]{8})"\}\n\Z')
_SEAL_INDENTED = re.compile(rb',\n  "checksum": "([0-9a-f]{8})"\n\}\n\Z')
_SAFE = re.compile(r"[A-Za-z0-9._@-]")


def crc32(data: bytes) -> str:
    """Return the CRC-32 of zlib, gzip and PNG (ISO 3309) as eight lower-case hexadecimal digits.

    Deliberately not the CRC-32C inside Zarr's codec chains: bytes followed by their own CRC-32C always have one and the
    same CRC-32C, so that of a chunk file would say nothing about its content, only about its length.
    """
    return f"{zlib.crc32(data):08x}"


def _plain(value: Json) -> Json:
    """Return `value` with mappings, sequences and numpy scalars made plain, NaN and infinities spelled as strings."""
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidArgumentError(f"The keys of a mapping must be text; got {sorted(map(repr, value))[:5]}.")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    raise InvalidArgumentError(
        f"A {type(value).__name__} cannot be stored as JSON; give numbers, text, lists and mappings (got {value!r})."
    )


def decode_number(value: float | str) -> float:
    """Return a stored number as a float; the strings "NaN", "Infinity" and "-Infinity" are read as what they say."""
    return float(value)


def encode_json(document: Json, *, indent: bool = False) -> str:
    """Return the JSON text of a document: ASCII, NaN and infinities as strings, one line unless `indent`."""
    separators = None if indent else (",", ":")
    return json.dumps(_plain(document), indent=2 if indent else None, separators=separators, allow_nan=False)


def seal(document: Mapping[str, Json], *, indent: bool = False) -> bytes:
    """Encode a document as JSON that carries its own checksum.

    ``checksum`` comes last: the CRC-32 of all bytes before the comma in front of it. A reader checks bytes and needs no
    canonical re-encoding, so a flipped bit is found wherever it is. Members keep their order.

    Parameters
    ----------
    document
        What to store. A member ``checksum`` is replaced.
    indent
        Two spaces per level for people (``run.json``) instead of one compact line (commit records).

    Returns
    -------
    bytes
        UTF-8 text that ends with a newline.

    Raises
    ------
    InvalidArgumentError
        A value cannot be stored as JSON, or the document is empty.
    """
    body = {key: value for key, value in document.items() if key != "checksum"}
    if not body:
        raise InvalidArgumentError("A sealed document needs at least one member besides its checksum.")
    covered = encode_json(body, indent=indent).removesuffix("\n}" if indent else "}").encode()
    if indent:
        return covered + f',\n  "checksum": "{crc32(covered)}"\n}}\n'.encode()
    return covered + f',"checksum":"{crc32(covered)}"}}\n'.encode()


def unseal(data: bytes, *, where: str | os.PathLike[str], indent: bool = False) -> dict[str, Json]:
    """Check and decode what :func:`seal` wrote; `where` is the file that an error names.

    Raises
    ------
    CorruptRecordingError
        The checksum is missing or differs, or the text is no JSON object.
    """
    match = (_SEAL_INDENTED if indent else _SEAL_LINE).search(data[-64:])
    if match is None:
        raise CorruptRecordingError(f"{os.fspath(where)}: truncated or damaged (no checksum at its end).")
    end = len(data) - len(match.group(0))
    if crc32(data[:end]) != match.group(1).decode():
        raise CorruptRecordingError(f"{os.fspath(where)}: damaged (checksum {match.group(1).decode()} does not match).")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptRecordingError(f"{os.fspath(where)}: not JSON ({error}).") from error
    if not isinstance(document, dict):
        raise CorruptRecordingError(f"{os.fspath(where)}: not a JSON object.")
    return document


def read_sealed(path: Path) -> dict[str, Json]:
    """Read a sealed, indented document from a file; raises as :func:`unseal`, and on a missing file."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CorruptRecordingError(f"{path}: missing.") from error
    return unseal(data, where=path, indent=True)


def check_version(declared: Json, *, where: str | os.PathLike[str]) -> str:
    """Return the format version that a document declares, or say why this reader cannot read it.

    A newer minor version is read (unknown members are ignored); another major version is refused.

    Raises
    ------
    CorruptRecordingError
        Not a declaration of this format.
    UnsupportedVersionError
        The major version is not one that this reader knows.
    """
    where = os.fspath(where)
    if not isinstance(declared, Mapping) or declared.get("name") != FORMAT_NAME:
        raise CorruptRecordingError(f"{where}: does not declare the format {FORMAT_NAME!r}.")
    version = declared.get("version")
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+", version):
        raise CorruptRecordingError(f"{where}: format version {version!r} is not of the form MAJOR.MINOR.")
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise UnsupportedVersionError(
            f"{where}: format version {version}, this dynome reads {FORMAT_VERSION.split('.')[0]}.x; update dynome."
        )
    return version


def encode_component(name: str, *, reserved: frozenset[str] = frozenset()) -> str:
    """Return `name` as one safe path component.

    Everything outside ``A-Z a-z 0-9 . _ @ -`` is percent-encoded by its UTF-8 bytes. The first character of a name that
    would collide (``.``, ``..``, ``zarr.json`` or one of `reserved`) is percent-encoded too, as is that of a name which
    starts with ``__`` (Zarr reserves it). The original name is kept in the array's attributes.

    Raises
    ------
    InvalidArgumentError
        The name is empty, or too long for a file system once encoded.
    """
    if not name:
        raise InvalidArgumentError("A name in a recording must not be empty.")

    def percent(character: str) -> str:
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))

    encoded = "".join(character if _SAFE.match(character) else percent(character) for character in name)
    collides = encoded in {".", "..", "zarr.json"} or encoded in reserved
    if collides or encoded.startswith("__"):
        encoded = percent(name[0]) + encoded[1:]
    if encoded.endswith(PARTIAL_SUFFIX):
        encoded = encoded[:-1] + percent(encoded[-1])
    if len(encoded) > 240:
        raise InvalidArgumentError(
            f"The name {name[:40]!r}... is too long for a file name ({len(encoded)} > 240 bytes)."
        )
    return encoded


def storage_dtype(dtype: str) -> str:
    """Return the dtype on disk of a logical dtype: bfloat16 is stored as the bit pattern uint16, others as they are.

    Raises
    ------
    InvalidArgumentError
        The format cannot store this dtype.
    """
    if dtype == "bfloat16":
        return "uint16"
    if dtype not in DTYPES:
        raise InvalidArgumentError(
            f"dtype {dtype!r} cannot be recorded; use one of bfloat16, {', '.join(sorted(DTYPES))}."
        )
    return dtype


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the exact float32 values of bfloat16 bit patterns (a new array of the same shape)."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)
