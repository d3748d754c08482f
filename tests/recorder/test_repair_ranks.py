"""Repairing recordings of batches and of several ranks: whatever one file loses, nothing else is lost."""

import hashlib
import shutil

import numpy as np
import pytest
import xarray as xr
from recordings import describe_ranks, due_streams, ranked_moment, whole_snapshot, write_ranks

from dynome_recorder.errors import CorruptRecordingError, RecordingLockedError
from dynome_recorder.info import describe_recording
from dynome_recorder.storage import inspection, repair
from dynome_recorder.storage.commits import fold_segments, record_path
from dynome_recorder.storage.lifecycle import acquire_lock
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

STEPS = 7
LEFT_OUT = {(3, 1): ("batches",), (4, 0): ("probe",)}
GAPS = {("batches", 3), ("probe", 4)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_ranks(tmp_path_factory.mktemp("repair") / "run", steps=STEPS, skipped=LEFT_OUT)


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def committed_files(path):
    """Return the files that are committed, and not derived: of the log and of bulk arrays."""
    names = [f"store.zarr/{name}" for name in read_manifest(path).state.files]
    return sorted([*(path / name for name in names), *(path / "commits").iterdir()])


def contents(path):
    """Return the contents of all files of a recording and its quarantine."""
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*") if file.is_file()}


def flip(file, bit=77):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def check_holds(path, *, gone, lost_records=(), steps=STEPS, parts=2, world=2):
    """Check that a recording holds everything but the snapshots that are gone, (stream, step), and lost records."""
    manifest = read_manifest(path)
    assert [record.step for record in manifest.live] == [s for s in range(steps) if s not in lost_records]
    for stream in ("probe", "weights", "batches"):
        due = [step for step in range(steps) if stream in due_streams(step)]
        held = [record.step for record, _ in manifest.snapshots(stream)]
        assert held == [step for step in due if (stream, step) not in gone and step not in lost_records], stream
        assert [index for _, index in manifest.snapshots(stream)] == [due.index(step) for step in held]
    losses, _ = manifest.step_metrics()["loss"]
    assert losses.tolist() == [step for step in range(1, steps) if step not in lost_records]
    for kind, entries in (
        ("probe", manifest.sites),
        ("weights", manifest.weights),
        ("batches", manifest.batches),
        ("gradients", manifest.gradients),
    ):
        for site, entry in entries.items():
            array = manifest.array(entry["path"])
            for record, index in manifest.snapshots("batches" if kind == "gradients" else kind):
                expected = whole_snapshot(kind, site, record.step, parts=parts, world=world)
                np.testing.assert_array_equal(array[index], expected)


def step_of(path, name):
    """Return the step whose snapshot a committed file of a bulk array holds a part of."""
    stream = name.split("/")[0]
    index = int(name.rpartition("/")[2].split(".")[1])
    return [record.step for record in read_manifest(path).state.owners[stream]][index]


@pytest.mark.parametrize("how", ["flip", "remove"])
def test_any_file_may_go_and_takes_no_more_than_what_it_held(original, tmp_path, how):
    """Each committed file in turn: found, repaired, and everything else is still there, to the last bit."""
    for number, whole in enumerate(committed_files(original)):
        path = shutil.copytree(original, tmp_path / f"run{number}")
        file = path / whole.relative_to(original)
        name = file.relative_to(path).as_posix()
        kept = {hashlib.sha256(other.read_bytes()).hexdigest() for other in committed_files(path) if other != file}
        gone, lost_records = set(GAPS), ()
        if name.startswith("store.zarr"):
            stream, step = name.split("/")[1], step_of(path, name.removeprefix("store.zarr/"))
            is_left_out = (stream, step) in GAPS  # what the other rank wrote of it
            gone.add((stream, step))
        else:
            step, is_left_out = int(file.name[:8]), False
            if ".r1." in name:
                gone |= {(stream, step) for stream in due_streams(step) if stream != "weights"}
            else:
                lost_records = (step,)
        flip(file) if how == "flip" else file.unlink()
        found = verify(path, deep=True)
        assert not found.valid
        assert name in {finding.file for finding in found.findings if finding.severity == "damage"}, found.findings
        repaired = verify(path, deep=True, repair=True)
        assert repaired.clean, (name, repaired.findings)
        assert repaired.deep
        assert kept <= contents(path), f"{name}: the repair deleted something else"
        check_holds(path, gone=gone, lost_records=lost_records)
        lost = {stream: len(indices) for stream, indices in repaired.lost.items()}
        # That a batch was left out is known of the rank that did so.
        known = GAPS - {("batches", 3)} if name == "commits/00000003.r1.json" else GAPS
        extra = {stream: sum(s == stream for s, _ in gone - known) for stream in lost}
        if lost_records:
            extra = {stream: int(stream in due_streams(step)) for stream in lost}
        if is_left_out:
            extra = dict.fromkeys(lost, 0)
        assert lost == extra, name
        # And it goes on, with two ranks and with another number.
        write_ranks(path, steps=STEPS + 1, first=STEPS)
        write_ranks(path, steps=STEPS + 2, first=STEPS + 1, world=1)
        assert verify(path, deep=True).clean, name
        shutil.rmtree(path)


def test_several_parts_in_a_row_may_go(run):
    for step in (2, 3, 6):
        record_path(run / "commits", step, 1).unlink()
    with pytest.raises(CorruptRecordingError, match=r"\.r1\.json: the chain of commits is broken"):
        read_manifest(run)
    findings = verify(run).findings
    assert {finding.problem for finding in findings} >= {f"record {step} of rank 1 is lost" for step in (2, 3, 6)}
    repaired = verify(run, repair=True)
    assert repaired.clean, repaired.findings
    assert "record 3 of rank 1 is lost, and the activations of that moment with it" in repaired.repairs
    assert not any("deleted" in text for text in repaired.repairs)
    check_holds(run, gone={*GAPS, ("probe", 2), ("batches", 2), ("probe", 6), ("batches", 6)})
    # The batch of step 3 was left out already, but that is only known of the rank whose record is gone.
    assert repaired.lost["batches"] == (2, 3, 6)
    with xr.open_zarr(run / "store.zarr", group="batches") as batches:
        assert batches["status"].values.tolist() == [0, 0, 2, 2, 0, 0, 2]
        assert batches["step"].values.tolist() == list(range(7))  # the moments are known still
        assert batches["samples"].values[2].tolist() == [0, 0]
    write_ranks(run, steps=STEPS + 2, first=STEPS)
    assert verify(run, deep=True).clean


@pytest.mark.parametrize("ranks", [(0, 1), (1,), (0,)])
@pytest.mark.parametrize("steps", [(2,), (2, 3), (0,), (6,), (2, 6)])
def test_records_of_all_ranks_may_go(run, steps, ranks):
    """Also those of one moment on several ranks: then nothing says that the others had any."""
    bulk = {hashlib.sha256(f.read_bytes()).hexdigest() for f in run.rglob("c.*") if f.parent.name == "activation"}
    for step in steps:
        for rank in ranks:
            record_path(run / "commits", step, rank).unlink()
    found = verify(run)
    assert all(finding.repairable for finding in found.findings)
    records = {f"commits/{record_path(run, step, rank).name}" for step in steps for rank in ranks}
    damaged = {finding.file for finding in found.findings if finding.severity == "damage"}
    # Of two that are gone together, on all ranks, nobody knows that there were two of rank 1.
    assert damaged == records or (len(ranks) == 2 and {name for name in records if ".r1." not in name} <= damaged)
    assert damaged <= records
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    assert bulk <= contents(run)
    gone = {(stream, step) for step in steps for stream in ("probe", "batches")}
    check_holds(run, gone=GAPS | gone, lost_records=steps if 0 in ranks else ())
    write_ranks(run, steps=STEPS + 1, first=STEPS)
    assert verify(run, deep=True).clean


def test_what_a_lost_part_had_written_goes_to_the_quarantine(run):
    """Its files are on no list any more, but they were committed."""
    record_path(run / "commits", 2, 1).unlink()
    verify(run, repair=True)
    quarantined = {file.relative_to(run / "quarantine").as_posix() for file in (run / "quarantine").rglob("c.*")}
    arrays = [f"batches/sites/{site}/{kind}" for site in ("a", "tokens") for kind in ("activation", "gradient")]
    assert quarantined == {
        "store.zarr/batches/sample_id/c.2.1",
        *(f"store.zarr/{array}/c.2.1.0" for array in arrays),
        *(f"store.zarr/probe/sites/{site}/activation/c.1.1.0" for site in ("a", "tokens")),
    }


def test_a_ragged_end_is_harmless(run):
    """Rank 0 was three moments ahead when all were killed."""
    with RecordingWriter.open(run, describe_ranks(2), world=2, publish_interval=1e9) as lead:
        for step in range(STEPS, STEPS + 3):
            lead.commit(ranked_moment(step, 0, parts=2, world=2))
        assert verify(run, deep=True).findings == ()  # being recorded: only damage is told
    check_holds(run, gone=GAPS)
    result = verify(run, deep=True)
    assert result.valid
    assert {finding.problem for finding in result.findings} == {"not committed by all ranks", "never committed"}
    assert result.records == STEPS
    copy = shutil.copytree(run, run.parent / "copy")
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean
    assert sorted(file.name for file in (run / "quarantine/commits").iterdir()) == [
        f"{step:08d}.json" for step in range(STEPS, STEPS + 3)
    ]
    write_ranks(copy, steps=STEPS + 1, first=STEPS)
    assert not (copy / "quarantine").exists()
    for path in (run, copy):
        assert verify(path, deep=True).clean
    check_holds(copy, gone=GAPS, steps=STEPS + 1)


def test_a_rank_that_is_ahead_is_ragged_too(run):
    with RecordingWriter.open(run, describe_ranks(2), world=2, publish_interval=1e9) as lead:
        other = RecordingWriter.open(run, describe_ranks(2), rank=1, world=2, first_sequence=lead.next_sequence)
        with other:
            for step in range(STEPS, STEPS + 2):
                other.commit(ranked_moment(step, 1, parts=2, world=2))
    result = verify(run)
    assert result.valid
    assert not result.clean
    check_holds(run, gone=GAPS)
    assert verify(run, repair=True).clean
    write_ranks(run, steps=STEPS + 1, first=STEPS)
    check_holds(run, gone=GAPS, steps=STEPS + 1)


def test_a_segment_of_another_rank_may_go(tmp_path):
    path = write_ranks(tmp_path / "run", steps=66)
    fold_segments(path / "commits", length=66, rank=1)
    segment = path / "commits/segment-00000000-00000063.r1.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    flip(segment, 8 * len(b"".join(lines[:10])) + 99)
    assert "record 10 of rank 1 is lost" in {finding.problem for finding in verify(path).findings}
    repaired = verify(path, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    assert segment.is_file()  # folded again, with the gap
    check_holds(path, gone={("batches", 10), ("probe", 10)}, steps=66)
    segment.unlink()
    repaired = verify(path, repair=True)
    assert repaired.clean, repaired.findings
    assert len(repaired.lost["batches"]) == 64
    check_holds(path, gone={(stream, step) for stream in ("probe", "batches") for step in range(64)}, steps=66)


def test_a_repair_keeps_every_rank_out(run):
    (run / "commits/00000002.r1.json").unlink()
    lock = acquire_lock(run, 1)
    try:
        with pytest.raises(RecordingLockedError):
            verify(run, repair=True)
    finally:
        lock.release()
    assert verify(run, repair=True).clean


def test_a_deep_repair_reads_every_file_once(run, monkeypatch):
    flip(run / "store.zarr/batches/sites/a/activation/c.2.0.0")
    read = []
    check = inspection.check_file

    def counted(path, *, size, checksum):
        if checksum is not None:
            read.append(path)
        check(path, size=size, checksum=checksum)

    monkeypatch.setattr(inspection, "check_file", counted)
    assert verify(run, deep=True, repair=True).clean
    assert len(read) == len(set(read)) > 50


@pytest.mark.parametrize("point", range(9))
def test_a_repair_that_is_cut_off_can_be_repeated(run, monkeypatch, point):
    flip(run / "commits/00000002.r1.json")
    flip(run / "commits/00000005.json")
    flip(run / "store.zarr/batches/sites/a/gradient/c.1.0.0")
    flip(run / "store.zarr/zarr.json")
    kept = {hashlib.sha256(f.read_bytes()).hexdigest() for f in run.rglob("c.*") if f.parent.name in {"activation"}}
    calls = iter(range(10**6))

    def cut(function):
        def call(*args, **options):
            if next(calls) == point:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("quarantine", "write_record", "fold_segments", "sweep_orphans", "record_losses", "build_views"):
            patch.setattr(repair, name, cut(getattr(repair, name)))
        with pytest.raises(KeyboardInterrupt):
            verify(run, deep=True, repair=True)
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    gone = {*GAPS, ("probe", 2), ("batches", 2), ("batches", 1)}
    check_holds(run, gone=gone, lost_records=(5,))
    assert kept <= contents(run)


def test_info_tells_streams_ranks_and_what_was_left_out(run):
    record_path(run / "commits", 6, 1).unlink()
    verify(run, repair=True)
    document = describe_recording(run)
    assert document["format"] == "1.1"
    assert document["snapshots"] == {
        "probe": {"committed": 2, "superseded": 0, "lost": 1},
        "weights": {"committed": 3, "superseded": 0, "lost": 0},
        "batches": {"committed": 5, "superseded": 0, "lost": 1},
    }
    assert document["skipped"] == {"probe": 1, "weights": 0, "batches": 1}
    assert document["ranks"] == [2]
    assert {entry["path"] for entry in document["batches"]} == {
        f"batches/sites/{site}/{kind}" for site in ("a", "tokens") for kind in ("activation", "gradient")
    }
    assert all(entry["stored_bytes"] > 0 for entry in document["batches"])
    assert document["size"]["files"] == len(read_manifest(run).state.files)
