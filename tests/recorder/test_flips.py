"""Random damage in any stored file: verifying finds it, and an analysis refuses or reads what was written.

Two recordings are damaged: one process's, with folded and single records, a rewind, a loss that was repaired, both
simple and sharded files; and one of two ranks, with batches, gradients, part records and snapshots that were left out.
"""

from __future__ import annotations

import json
import random
import shutil
from typing import TYPE_CHECKING

import dask
import format_golden
import numpy as np
import pytest

from dynome_analysis import open_recording
from dynome_recorder.errors import CorruptRecordingError, DynomeError, RecordingNotFoundError
from dynome_recorder.storage.format import QUARANTINE_FOLDER
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

RECORDINGS = {"one": format_golden.write, "ranks": format_golden.write_ranked}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recordings, undamaged."""
    folder = tmp_path_factory.mktemp("flips")
    for name, write in RECORDINGS.items():
        write(folder / name)
    return {name: folder / name for name in RECORDINGS}


@pytest.fixture(params=RECORDINGS)
def run(request: pytest.FixtureRequest, originals: dict[str, Path], tmp_path: Path) -> Path:
    """One of the recordings, to be damaged."""
    original = originals[request.param]
    shutil.copy(f"{original}-expected.npz", tmp_path)
    return shutil.copytree(original, tmp_path / request.param)


def kinds_of_files(run: Path) -> dict[str, list[Path]]:
    """Return every stored file by what it is, so that the few of one kind are hit as often as the many of another."""
    arrays = set(read_manifest(run).layouts)
    kinds: dict[str, list[Path]] = {}
    for file in sorted(run.rglob("*")):
        path = file.relative_to(run)
        if not file.is_file() or file.name.endswith(".lock") or path.parts[0] == QUARANTINE_FOLDER:
            continue
        if path.parts[0] == "commits":
            kind = f"{'segment' if 'segment' in file.name else 'record'} {file.name.partition('.r')[1] or 'of rank 0'}"
        elif file.name == "zarr.json":
            kind = f"node {json.loads(file.read_bytes())['attributes']['element']}"
        else:
            array = path.parent.relative_to("store.zarr").as_posix() if len(path.parts) > 1 else ""
            kind = "run.json" if not array else f"data {array}" if array in arrays else "view"
        kinds.setdefault(kind, []).append(file)
    return kinds


def read_all(run: Path) -> dict[str, object]:
    """Return everything that an analysis may read of a recording, as bytes or text."""
    recording = open_recording(run)
    found: dict[str, object] = {"hyperparameters": repr(recording.hyperparameters), "id": recording.id}
    arrays = {f"weight {name}": recording.weight(name) for name in recording.parameters}
    arrays |= {f"probe {site}": recording.activations(site) for site in recording.sites}
    if recording.manifest.batches:
        batches = open_recording(run, stream="batches")
        arrays |= {f"batches {site}": batches.activations(site) for site in batches.sites}
    for name, array in zip(arrays, dask.compute(*arrays.values(), scheduler="synchronous")):
        labels = {label: values.to_numpy().tolist() for label, values in array.coords.items()}
        found[name] = (array.dims, array.shape, array.to_numpy().tobytes(), repr(labels))
    for site, entry in recording.manifest.gradients.items():
        values = recording.manifest.array(entry["path"])
        found[f"gradient {site}"] = [values[index].tobytes() for _, index in recording.manifest.snapshots("batches")]
    for name, table in (("step", recording.step_metrics), ("epoch", recording.epoch_metrics)):
        found[f"{name} metrics"] = {str(key): column.to_numpy().tobytes() for key, column in table.variables.items()}
    found["moments"] = [
        (one.epoch, one.step, one.epoch_complete, one.parameters, one.samples, repr(one.health), one.skipped)
        for one in recording.manifest.live
    ]
    return found


def needed_files(run: Path) -> tuple[set[Path], set[Path]]:
    """Return the files whose content an analysis cannot do without, and those that must be there with their size.

    It reads the log and the live snapshots; views and metadata derive from the log.
    """
    manifest = read_manifest(run)
    live = {(stream, index) for stream in manifest.state.status for _, index in manifest.snapshots(stream)}
    log = {run / "run.json", *(run / "commits").iterdir()}
    committed = {run / "store.zarr" / name for name in manifest.state.files}
    read = {file for file in committed if (file.relative_to(run).parts[1], int(file.name.split(".")[1])) in live}
    return log | read, log | committed


def check_damage(run: Path, file: Path, damage: str, expected: dict[str, object], *, needed: bool) -> None:
    """Assert that `verify` names a damaged file, and that an analysis raises an error that does, or reads the same.

    Where the file is `needed` it must be the error, else the same values.
    Of a lost segment `verify` names the records, and of any lost file of the log a reader names the folder.
    """
    name = file.relative_to(run).as_posix()
    of_lost_log = not file.exists() and name.startswith("commits/")
    try:
        result = verify(run, deep=damage.startswith("bit"))  # the size alone tells a cut
    except RecordingNotFoundError as error:
        assert (name, file.exists()) == ("run.json", False), error  # a folder without it is no recording
    else:
        blamed = [finding.file for finding in result.findings if finding.severity == "damage"]
        named = "commits/" if of_lost_log and "segment" in name else name
        assert any(one.startswith(named) for one in blamed), f"{damage} of {name} not found; blamed: {blamed}"
        assert not result.valid
    try:
        read = read_all(run)
    except DynomeError as error:
        assert needed, f"{damage} of {name} is no reason to refuse: {error}"
        assert type(error) is CorruptRecordingError, repr(error)
        assert "\n" not in str(error), error
        named = f"{run}/commits" if of_lost_log else name
        assert named in str(error), f"{damage} of {name} was blamed on another: {error}"
    else:
        assert not needed, f"{damage} of {name} was passed over"
        changed = [key for key in expected if read.get(key) != expected[key]]
        assert not changed, f"{damage} of {name} changed {changed} unseen"
        assert read.keys() == expected.keys()


def hurt(run: Path, *, flips: int, cuts: int, seed: int) -> None:
    """Flip single bits and cut files off, one at a time, evenly over the kinds of files; check each."""
    rng = random.Random(seed)
    kinds = list(kinds_of_files(run).values())
    expected = read_all(run)
    assert verify(run, deep=True).clean
    needed, needed_whole = needed_files(run)
    for number in range(flips + cuts):
        file = rng.choice(kinds[number % len(kinds)])
        data = file.read_bytes()
        if number < flips:
            bit = rng.randrange(8 * len(data))
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            damage = f"bit {bit}"
        else:
            length = rng.choice([None, 0, len(data) - 1, rng.randrange(len(data))])
            changed = bytearray(data[:length])
            damage = f"cut to {length} bytes" if length is not None else "loss"
        if damage == "loss":
            file.unlink()
        else:
            file.write_bytes(changed)
        check_damage(run, file, damage, expected, needed=file in (needed if number < flips else needed_whole))
        file.write_bytes(data)
    assert verify(run, deep=True).clean
    assert read_all(run) == expected


def test_every_kind_of_file_is_damaged(originals: dict[str, Path]) -> None:
    """What the campaign picks from: each array of bulk data, views, nodes, and the log in all its forms."""
    one, ranks = (set(kinds_of_files(run)) for run in originals.values())
    nodes = {f"node {element}" for element in ("recording", "group", "bulk", "view")}
    assert one > nodes | {"run.json", "view", "record of rank 0", "segment of rank 0"}
    assert ranks > nodes | {"run.json", "view", "record of rank 0", "segment of rank 0", "record .r", "segment .r"}
    for run, kinds in zip(originals.values(), (one, ranks)):
        assert {f"data {path}" for path in read_manifest(run).layouts} <= kinds
        assert read_manifest(run).gradients or run.name == "one"
    shards = read_manifest(originals["one"]).layouts["probe/sites/wide/activation"]
    assert shards.inner != shards.chunk


def test_undamaged_they_read_as_they_were_written(run: Path) -> None:
    """What damage is compared with is what was given to the writer, not only what was read before."""
    manifest = read_manifest(run)
    with np.load(f"{run}-expected.npz") as file:
        written = {name.removeprefix("array "): file[name] for name in file.files}
    entries = {**manifest.sites, **manifest.weights}
    if run.name == "ranks":
        entries = {"probe": manifest.sites["hidden"], "batches": manifest.batches["hidden"]}
        entries |= {"gradients": manifest.gradients["hidden"], "sample_id": {"path": "batches/sample_id"}}
    for name, entry in entries.items():
        stream = entry["path"].partition("/")[0]
        for _, index in manifest.snapshots(stream):
            np.testing.assert_array_equal(manifest.array(entry["path"])[index], written[name][index])
    if run.name == "one":
        np.testing.assert_array_equal(manifest.epoch_metrics()["val/loss"][1], written["losses"])


def test_random_damage_is_found_and_never_read(run: Path) -> None:
    hurt(run, flips=50, cuts=25, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_thousand_flipped_bits_and_two_hundred_cuts_are_found_and_never_read(run: Path, seed: int) -> None:
    """In all, over both recordings and the seeds."""
    hurt(run, flips=100, cuts=20, seed=seed)
