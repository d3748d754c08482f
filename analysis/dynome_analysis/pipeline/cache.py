"""Keep results beside the recording, in ``analysis.zarr``: one Zarr group per analysis, filled snapshot by snapshot.

The large arrays of a result are (snapshot, ...), and a chunk holds one snapshot: no two tasks ever write the same file.
What a snapshot has in them, and a record of it, are its *piece*. The record lists the piece's files with size and
crc32, says which snapshot they belong to, and seals itself; writing it is the last thing that happens, and one rename.
So whatever is killed, a piece is there whole or not at all, and whoever comes next goes on with the pieces that are
missing. A result is finished when its small arrays are written and the group's own attributes are sealed like a record.
Nothing is believed unchecked, and what is damaged is computed anew, alone. Records are Zarr groups without members, so
any Zarr reader reads the whole. Deleting ``analysis.zarr`` loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import uuid
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.array import AsyncArray
from zarr.storage import LocalStore, MemoryStore, StorePath

from dynome_analysis.pipeline.aligned import write_aligned
from dynome_recorder.errors import StorageError
from dynome_recorder.storage.format import ANALYSIS_FOLDER, PARTIAL_SUFFIX, encode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["CacheWarning", "Facts", "ResultFolder", "ResultKey", "RowArray", "prune"]

GROUP_FILE = "zarr.json"
RECORDS = "pieces"
NOTES = "notes"
# A temporary file this old belongs to a process that was killed: a live one renames it at once.
STALE_SECONDS = 3600.0
# zlib lets the interpreter go while it reads: more of these check a result faster, up to the disk's speed.
CHECKING_THREADS = 4
# What reading a damaged file can raise, in json, zarr and xarray.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)

Facts = dict[str, Any]
"""Numbers and words of one snapshot, kept in its record; NaN comes back as the word "NaN"."""


class CacheWarning(UserWarning):
    """A part of a cached result was damaged and is computed anew."""


class _DamageError(ValueError):
    """A stored file is not what was written; says which and how."""


@dataclass(frozen=True)
class ResultKey:
    """What a result depends on, but for the snapshots: each piece says to which of them it belongs.

    Attributes
    ----------
    operation : str
        What was computed.
    recording : str
        Identity of the run.
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


@dataclass(frozen=True)
class RowArray:
    """A large array of a result: ``width`` values per snapshot.

    Attributes
    ----------
    dimension : str
        Name of the second axis.
    width : int
        Values per snapshot, or the most there can be of them.
    dtype : str
    chunk : int, optional
        Values per chunk where snapshots have different numbers of values and most have few: the result is then as wide
        as the longest, and what is missing reads NaN. By default a snapshot is one chunk.
    """

    dimension: str
    width: int
    dtype: str
    chunk: int | None = None

    @property
    def step(self) -> int:
        """Length of a chunk along the second axis."""
        return max(1, self.chunk or self.width)

    @property
    def capacity(self) -> int:
        """Values per snapshot that there is room for: whole chunks."""
        return -(-self.width // self.step) * self.step


@dataclass(frozen=True)
class ResultFolder:
    """The group of one result on disk; small enough to travel with every task.

    Attributes
    ----------
    path : str
        The folder, absolute.
    arrays : dict of str to RowArray
        Its large arrays.
    """

    path: str
    arrays: Mapping[str, RowArray]

    def prepare(self, rows: int, origin: Mapping[str, Any]) -> None:
        """Make the group and room for the pieces of ``rows`` snapshots; keeps what is there. Raises StorageError.

        ``origin`` tells `prune` whose it is before it is finished.
        """
        folder = Path(self.path)
        with _writing(folder):
            for path in (folder.parent, folder, folder / RECORDS, folder / NOTES):
                try:
                    zarr.open_group(path, mode="r", zarr_format=3)
                except DAMAGE:
                    _write_document(path, _group({"origin": dict(origin)} if path == folder else {}))
            self._shape(rows, {})
            for left in folder.rglob(f"*{PARTIAL_SUFFIX}"):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink(missing_ok=True)

    def write_piece(
        self, row: int, identity: str, values: Mapping[str, NDArray[np.generic]], facts: Mapping[str, Any]
    ) -> None:
        """Write what a snapshot has in each array and commit it by its record. Raises StorageError."""
        folder = Path(self.path)
        files: dict[str, list[Any]] = {}
        with _writing(folder):
            for name, array in self.arrays.items():
                stop = -(-values[name].size // array.step) * array.step
                if not stop:
                    continue
                padded = np.full(stop, np.nan if array.chunk else 0, array.dtype)
                padded[: values[name].size] = values[name]
                write_aligned(self._target(name, row + 1), (slice(row, row + 1), slice(0, stop)), padded[None])
                for place in range(stop // array.step):
                    file = f"{name}/c/{row}/{place}"
                    files[file] = _entry(folder / file)
            record = {"identity": identity, "facts": dict(facts), "files": files}
            _write_document(self._record(RECORDS, row), _sealed(record))

    def write_note(self, row: int, identity: str, facts: Mapping[str, Any]) -> None:
        """Keep facts that need no files, as what lies between a snapshot and the one before. Raises StorageError."""
        with _writing(Path(self.path)):
            note = {"identity": identity, "facts": dict(facts), "files": {}}
            _write_document(self._record(NOTES, row), _sealed(note))

    def read_note(self, row: int, identity: str) -> Facts | None:
        """Return the facts of a note, or None where there is none of this identity, or it is damaged."""
        try:
            return self._read_record(NOTES, row, identity)
        except DAMAGE:
            return None

    def read_piece(self, row: int, identity: str) -> Facts | None:
        """Return the facts of a snapshot's piece, or None where it was not computed or belongs to another snapshot.

        Raises
        ------
        ValueError
            The piece is damaged; says which file.
        """
        return self._read_record(RECORDS, row, identity)

    def find_piece(self, row: int, identity: str) -> Facts | None:
        """Return the facts of a snapshot's piece, or None where it has to be computed, for whatever reason."""
        try:
            return self.read_piece(row, identity)
        except DAMAGE:
            return None

    def read_pieces(self, identities: Sequence[str]) -> dict[int, Facts]:
        """Return the facts of all snapshots whose pieces are there, by row; a damaged one is discarded with a warning.

        Reads every file once: as long as reading them takes.
        """

        def read(row: int) -> Facts | None:
            try:
                return self.read_piece(row, identities[row])
            except DAMAGE as error:
                damaged.append(f"{self.path} is damaged ({_words(error)}); computing snapshot {row} anew")
                self.discard_piece(row)
                return None

        damaged: list[str] = []
        with ThreadPoolExecutor(CHECKING_THREADS) as pool:
            found = list(pool.map(read, range(len(identities))))
        for text in damaged:
            warnings.warn(text, CacheWarning, stacklevel=3)
        return {row: facts for row, facts in enumerate(found) if facts is not None}

    def clear(self) -> None:
        """Take out all pieces and notes, by their records. Raises StorageError."""
        with _writing(Path(self.path)):
            for kind in (RECORDS, NOTES):
                for path in (Path(self.path) / kind).glob(f"*/{GROUP_FILE}"):
                    path.unlink(missing_ok=True)
            (Path(self.path) / GROUP_FILE).unlink(missing_ok=True)

    def discard_piece(self, row: int) -> None:
        """Take a piece out by its record, so that its files are nobody's; where nothing can be deleted it stays."""
        with contextlib.suppress(OSError):
            (self._record(RECORDS, row) / GROUP_FILE).unlink(missing_ok=True)

    def finish(self, rows: int, widths: Mapping[str, int], small: xr.Dataset, origin: Mapping[str, Any]) -> None:
        """Write the small arrays and seal the group; from then on it is a result. Raises StorageError.

        Parameters
        ----------
        rows : int
            Snapshots; pieces beyond are discarded.
        widths : dict of str to int
            Final width of the arrays whose snapshots differ in it.
        small : Dataset
            Everything else.
        origin : dict
            What `load_small` asks for, as JSON can hold it.
        """
        folder = Path(self.path)
        stored: dict[str, Any] = {}
        small.to_zarr(MemoryStore(stored), consolidated=False, zarr_format=3)
        files = {name: buffer.to_bytes() for name, buffer in stored.items()}
        attributes = json.loads(files.pop(GROUP_FILE))["attributes"]
        with _writing(folder):
            _write_document(folder, _group({"origin": dict(origin)}))
            for record in [*(folder / RECORDS).iterdir(), *(folder / NOTES).iterdir()]:
                if record.name.isdigit() and int(record.name) >= rows:
                    shutil.rmtree(record, ignore_errors=True)
            self._shape(rows, widths)
            # File by file, each by a rename: another process may be finishing the same result.
            for name, data in files.items():
                _write_file(folder / name, data)
            for name in _small_files(folder, self.arrays):
                if name not in files:
                    (folder / name).unlink(missing_ok=True)
            entries = {name: _entry_of(data) for name, data in files.items()}
            _write_document(folder, _sealed({**attributes, "origin": dict(origin), "files": entries}))

    def load_small(self) -> tuple[xr.Dataset, dict[str, Any]] | None:
        """Return small arrays and origin of a finished result, in memory; None where it is not finished.

        A damaged one is told by a `CacheWarning`, and None.
        """
        folder = Path(self.path)
        try:
            try:
                text = (folder / GROUP_FILE).read_bytes()
            except FileNotFoundError:
                return None
            with contextlib.suppress(*DAMAGE):
                if "seal" not in json.loads(text)["attributes"]:
                    return None
            attributes = _unsealed(text, f"{folder.name}/{GROUP_FILE}")
            listed = attributes["files"]
            for name in sorted({*listed, *_small_files(folder, self.arrays)}):
                if name not in listed:
                    raise _DamageError(f"{name} was not there")
                _check_entry(folder / name, listed[name])
            with xr.open_dataset(folder, engine="zarr", consolidated=False, drop_variables=list(self.arrays)) as stored:
                small = stored.load().drop_encoding()
        except DAMAGE as error:
            warnings.warn(f"{folder} is damaged ({_words(error)}); computing it anew", CacheWarning, stacklevel=3)
            return None
        for name in ("files", "origin", "seal"):
            del small.attrs[name]
        return small, attributes["origin"]

    def read_slice(self, name: str, row: int, start: int, stop: int) -> NDArray[Any]:
        """Return a part of the values of one snapshot, unchecked; reads no more than that.

        Chunks are not compressed, so a part is a range of bytes.
        """
        array = self.arrays[name]
        dtype = np.dtype(array.dtype).newbyteorder("<")
        path = Path(self.path) / name / "c" / str(row) / "0"
        return np.fromfile(path, dtype, count=stop - start, offset=start * dtype.itemsize)

    def read_values(self, name: str, row: int, part: slice) -> NDArray[Any]:
        """Return values of one snapshot in one array, unchecked: of a piece that was checked before."""
        values: NDArray[Any] = np.asarray(self._target(name, row + 1)[row, part])
        return values

    def read_checked(self, name: str, row: int, identity: str, part: slice) -> NDArray[Any]:
        """Return values of one snapshot in one array, after its files are checked again.

        Raises
        ------
        StorageError
            The piece was damaged or taken away since the result was opened.
        """
        try:
            record = _unseal(self._record(RECORDS, row) / GROUP_FILE)
            if record["identity"] != identity:
                raise _DamageError(f"snapshot {row} was computed anew, from other data")
            for file, entry in record["files"].items():
                if file.startswith(f"{name}/"):
                    _check_entry(Path(self.path) / file, entry)
            return self.read_values(name, row, part)
        except DAMAGE as error:
            raise StorageError(
                f"{self.path} has changed since it was opened ({_words(error)}): analyse the recording again, which "
                "computes only what is missing"
            ) from error

    def _record(self, kind: str, row: int) -> Path:
        return Path(self.path) / kind / str(row)

    def _read_record(self, kind: str, row: int, identity: str) -> Facts | None:
        try:
            record = _unseal(self._record(kind, row) / GROUP_FILE)
        except FileNotFoundError:  # not written yet, or just taken out by another process
            return None
        if record["identity"] != identity:
            return None
        for name, entry in record["files"].items():
            _check_entry(Path(self.path) / name, entry)
        facts: Facts = record["facts"]
        return facts

    def _target(self, name: str, rows: int) -> zarr.Array[Any]:
        """Return an array with room for ``rows`` snapshots, whatever its metadata on disk say of it now."""
        array = self.arrays[name]
        metadata = _in_memory(array, (rows, array.capacity)).metadata
        store = LocalStore(Path(self.path) / name)
        return zarr.Array(AsyncArray(metadata, StorePath(store)))

    def _shape(self, rows: int, widths: Mapping[str, int]) -> None:
        """Write the metadata of the large arrays where they differ; zarr's own resize would delete chunks."""
        for name, array in self.arrays.items():
            document = _in_memory(array, (rows, widths.get(name, array.capacity))).metadata.to_dict()
            text = encode_json(document, indent=True)
            path = Path(self.path) / name / GROUP_FILE
            if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
                _write_text(path, text)


def prune(root: Path, key: ResultKey) -> None:
    """Delete results of another run or of other code, finished or not, and what older versions left behind."""
    for path in root.iterdir():
        if path.is_dir() and path.name.startswith(f"{key.operation}-") and path.name != key.name:
            try:
                origin = json.loads((path / GROUP_FILE).read_bytes())["attributes"].get("origin", {})
            except DAMAGE:
                continue  # another process may be about to say whose it is; its own next call sees to the rest
            if (origin.get("recording"), origin.get("code")) != (key.recording, key.code):
                shutil.rmtree(path, ignore_errors=True)
    for path in root.parent.glob(f"{ANALYSIS_FOLDER}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder in what goes wrong while it is written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or _words(error)
        raise StorageError(f"{folder} cannot be written ({reason}): make room there") from error


def _in_memory(array: RowArray, shape: tuple[int, int]) -> zarr.Array[Any]:
    """Return an empty array in memory that is described as the one on disk."""
    return zarr.create_array(
        {},
        shape=shape,
        chunks=(1, array.step),
        dtype=array.dtype,
        dimension_names=("snapshot", array.dimension),
        compressors=None,
        fill_value=np.nan if array.chunk else 0,
        zarr_format=3,
    )


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def _sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a group whose attributes carry a checksum of themselves."""
    plain = json.loads(encode_json(dict(attributes)))
    return _group({**plain, "seal": _checksum(plain)})


def _unseal(path: Path) -> dict[str, Any]:
    """Return the attributes of a sealed group without their checksum; ValueError where they do not match it."""
    return _unsealed(path.read_bytes(), f"{path.parent.name}/{path.name}")


def _unsealed(text: bytes, where: str) -> dict[str, Any]:
    attributes: dict[str, Any] = json.loads(text)["attributes"]
    if attributes.pop("seal", None) != _checksum(attributes):
        raise _DamageError(f"{where} does not match its checksum")
    return attributes


def _checksum(attributes: Mapping[str, Any]) -> str:
    """Return the checksum of attributes, independent of how they are laid out."""
    return f"{zlib.crc32(json.dumps(attributes, sort_keys=True).encode()):08x}"


def _entry(path: Path) -> list[Any]:
    return _entry_of(path.read_bytes())


def _entry_of(data: bytes) -> list[Any]:
    return [len(data), f"{zlib.crc32(data):08x}"]


def _check_entry(path: Path, entry: Sequence[Any]) -> None:
    if not path.is_file():
        raise _DamageError(f"{path.name} of {path.parent.name} is missing")
    if _entry(path) != list(entry):
        raise _DamageError(f"{path} is not what was written")


def _small_files(folder: Path, large: Mapping[str, RowArray]) -> list[str]:
    """Return the files of the small arrays of a group, relative to it."""
    found = (
        file.relative_to(folder).as_posix()
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name not in large and entry.name not in (RECORDS, NOTES)
        for file in entry.rglob("*")
        if file.is_file() and not file.name.endswith(PARTIAL_SUFFIX)
    )
    return sorted(found)


def _write_document(folder: Path, document: Mapping[str, Any]) -> None:
    _write_text(folder / GROUP_FILE, encode_json(document, indent=True))


def _write_text(path: Path, text: str) -> None:
    _write_file(path, text.encode())


def _write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also where another process writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _words(error: Exception) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
