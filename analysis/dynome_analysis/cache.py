"""Keep results beside the recording, in ``analysis.zarr``, whole or not at all.

A result is a Zarr group of its own, named by what it depends on. It is written under a temporary name, sealed (the
group's attributes list every file with size and crc32, and carry a checksum of their own), then renamed. A reader
checks everything before it believes anything, so a damaged result is computed anew. Deleting ``analysis.zarr`` loses
nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr
import zarr

from dynome_recorder.format import ANALYSIS_FOLDER, PARTIAL_SUFFIX

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CacheWarning", "ResultKey", "load_result", "store_result"]

logger = logging.getLogger(__name__)

GROUP_FILE = "zarr.json"
# A partial folder this old belongs to a process that was killed: a live one adds files all the time.
STALE_SECONDS = 3600.0


class CacheWarning(UserWarning):
    """A cached result was damaged and is computed anew."""


@dataclass(frozen=True)
class ResultKey:
    """What a result depends on.

    Attributes
    ----------
    operation : str
        What was computed.
    recording : str
        Digest of what the recording had committed.
    code : str
        Version of the code that computes.
    parameters : str
        Everything else, as JSON.
    """

    operation: str
    recording: str
    code: str
    parameters: str

    @property
    def name(self) -> str:
        """Name of the group that holds the result."""
        text = json.dumps([self.operation, self.recording, self.code, self.parameters])
        return f"{self.operation}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def load_result(recording: Path, key: ResultKey) -> xr.Dataset | None:
    """Return the cached result in memory, or None where there is none.

    A damaged one gives a `CacheWarning` that names what is wrong, and None.
    """
    path = recording / ANALYSIS_FOLDER / key.name
    if not path.is_dir():
        return None
    try:
        _check_seal(path)
        with xr.open_dataset(path, engine="zarr", consolidated=False) as stored:
            result = stored.load().drop_encoding()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        warnings.warn(f"{path} is damaged ({error}); computing it anew", CacheWarning, stacklevel=3)
        return None
    for name in ("files", "origin", "seal"):
        del result.attrs[name]
    return result


def store_result(recording: Path, key: ResultKey, result: xr.Dataset) -> bool:
    """Write a result so that it is there whole or not at all; prune results that can never be asked for again.

    Returns
    -------
    bool
        False where the folder cannot be written (read-only, full): the result then simply is not cached.
    """
    root = recording / ANALYSIS_FOLDER
    partial = recording / f"{ANALYSIS_FOLDER}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        _open_root(root)
        result.to_zarr(partial, mode="w-", consolidated=False, zarr_format=3)
        _seal(partial, key)
        if (root / key.name).exists():
            _discard(root / key.name)
        partial.rename(root / key.name)
        _prune(root, key)
    except (OSError, ValueError) as error:
        logger.info("not caching %s in %s: %s", key.operation, root, error)
        shutil.rmtree(partial, ignore_errors=True)
        return False
    return True


def _open_root(root: Path) -> None:
    """Make the group that holds all results; damaged metadata of its own must not end caching for good."""
    try:
        zarr.open_group(root, mode="a", zarr_format=3)
    except (ValueError, KeyError, TypeError):
        (root / GROUP_FILE).unlink(missing_ok=True)
        zarr.open_group(root, mode="a", zarr_format=3)


def _seal(path: Path, key: ResultKey) -> None:
    """Complete a written group: list its files in its attributes, and a checksum over all of its metadata."""
    document = json.loads((path / GROUP_FILE).read_bytes())
    document["attributes"]["origin"] = {"recording": key.recording, "code": key.code}
    document["attributes"]["files"] = {name: _entry(path / name) for name in _files(path)}
    document["attributes"]["seal"] = _checksum(document)
    (path / GROUP_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _check_seal(path: Path) -> None:
    """Raise ValueError unless every file of a group is as it was when it was sealed."""
    document = json.loads((path / GROUP_FILE).read_bytes())
    if document["attributes"].pop("seal", None) != _checksum(document):
        raise ValueError(f"{GROUP_FILE} does not match its checksum")
    listed = document["attributes"]["files"]
    for name in sorted({*listed, *_files(path)}):
        if name not in listed or listed[name] != _entry(path / name):
            raise ValueError(f"{name} is not what was written")


def _files(path: Path) -> list[str]:
    """Return the files of a group but for its own metadata, relative to it."""
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in found if name != GROUP_FILE)


def _entry(path: Path) -> list[Any]:
    data = path.read_bytes()
    return [len(data), f"{zlib.crc32(data):08x}"]


def _checksum(document: dict[str, Any]) -> str:
    """Return the checksum of the document without its seal, independent of how it is laid out."""
    return f"{zlib.crc32(json.dumps(document, sort_keys=True).encode()):08x}"


def _prune(root: Path, key: ResultKey) -> None:
    """Delete results of another state of the recording or of other code, and what killed writers left."""
    for path in root.iterdir():
        if path.is_dir() and path.name.startswith(f"{key.operation}-"):
            try:
                origin = json.loads((path / GROUP_FILE).read_bytes())["attributes"]["origin"]
            except (OSError, ValueError, KeyError, TypeError):
                origin = None
            if origin != {"recording": key.recording, "code": key.code}:
                _discard(path)
    for path in root.parent.glob(f"{ANALYSIS_FOLDER}.*{PARTIAL_SUFFIX}"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path) -> None:
    """Take a result away in one step, then delete it: a crash in between leaves no half of it under its name."""
    trash = path.parent.parent / f"{ANALYSIS_FOLDER}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
