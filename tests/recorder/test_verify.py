"""Verifying and repairing: what is damaged is found, what can be read stays readable, what is lost is said."""

import shutil

import numpy as np
import pytest
import xarray as xr
from recordings import describe, moments

from dynome_recorder.errors import (
    CorruptRecordingError,
    DynomeError,
    RecordingLockedError,
    RecordingNotFoundError,
    UnsupportedVersionError,
)
from dynome_recorder.storage import repair
from dynome_recorder.storage.commits import SEGMENT_LENGTH
from dynome_recorder.storage.format import crc32, seal, unseal
from dynome_recorder.storage.layout import check_node
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import Verification, verify
from dynome_recorder.storage.writer import RecordingWriter

SITES = {"a": 6, "b": 4}
CHUNK = "store.zarr/probe/sites/a/activation/c.1.0.0"


def record(path, *, epochs=5, publish_interval=2.0, sites=SITES):
    expected = moments(sites, samples=10, epochs=epochs)
    description = describe(sites, samples=10)
    with RecordingWriter.open(path, description, publish_interval=publish_interval) as writer:
        for number, moment in enumerate(expected):
            writer.commit(moment)
            if number == 3:
                writer.rewind(2)
    return expected


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A recording with a folded segment, single records, a rewind, both streams, metrics and a sharded site."""
    path = tmp_path_factory.mktemp("verify") / "run"
    sites = {"a": 6, "wide": 60_000}
    expected = moments(sites, samples=10, epochs=SEGMENT_LENGTH + 2, weights=False)
    description = describe(sites, samples=10, weights=False)
    with RecordingWriter.open(path, description, publish_interval=1e9) as writer:
        for number, moment in enumerate(expected):
            small = number in (0, 40)
            writer.commit(moment if small else type(moment)(**{**vars(moment), "probe": None}))
    return path


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    record(path)
    return path


def stored_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "recorder.lock")


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_every_bit_of_a_small_recording_that_a_reader_follows_is_refused(run):
    """A reader without verify: no flipped bit in the log or in run.json goes unnoticed."""
    for file in (run / "run.json", run / "commits/00000002.json"):
        for bit in range(0, 8 * file.stat().st_size, 61):
            flip(file, bit)
            with pytest.raises(DynomeError, match=file.name):
                read_manifest(run)
            flip(file, bit)


def test_a_file_that_was_swapped_for_another_of_the_same_size_is_found(run):
    """The reason why files are listed with CRC-32: the CRC-32C of a chunk that ends with its own says nothing."""
    one, other = (run / f"store.zarr/weights/head.bias/weight/c.{n}.0" for n in (2, 3))
    for file, value in ((one, 1), (other, 2)):
        assert file.exists(), value
    data = one.read_bytes(), other.read_bytes()
    assert len(data[0]) == len(data[1])
    assert data[0] != data[1]
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    assert verify(run).clean  # the sizes are right
    assert {f.file.rpartition("/")[2] for f in verify(run, deep=True).findings} == {"c.2.0", "c.3.0"}


def test_a_clean_recording_is_counted(run):
    calls = []
    result = verify(run, deep=True, progress=lambda *call: calls.append(call))
    assert result.clean
    assert result.valid
    assert (result.records, result.snapshots, result.lost) == (
        7,
        {"probe": 5, "weights": 5},
        {"probe": (), "weights": ()},
    )
    assert result.files == 6 * 8
    assert result.stored_bytes == sum(
        f.stat().st_size
        for f in stored_files(run)
        if f.name.startswith("c.") and f.parent.name in {"activation", "weight"}
    )
    assert calls[-1] == ("Verifying", 48, 48)
    assert verify(run, repair=True) == Verification(**{**vars(result), "deep": False})
    assert not (run / "quarantine").exists()


def test_what_is_no_recording_is_refused(tmp_path, run):
    for call in (lambda **o: verify(tmp_path / "nothing", **o), lambda **o: verify(run.parent, **o)):
        for options in ({}, {"repair": True}):
            with pytest.raises(RecordingNotFoundError):
                call(**options)
    document = unseal((run / "run.json").read_bytes(), where="x", indent=True)
    document["format"]["version"] = "2.0"
    (run / "run.json").write_bytes(seal(document, indent=True))
    with pytest.raises(UnsupportedVersionError, match="update dynome"):
        verify(run)


def test_a_version_changed_by_hand_is_damage_and_the_text_says_both(run):
    text = (run / "run.json").read_text()
    assert '"version": "1.1"' in text
    (run / "run.json").write_text(text.replace('"version": "1.1"', '"version": "2.0"', 1))
    with pytest.raises(CorruptRecordingError, match=r"run.json: damaged .* It declares format version 2.0.*verify RUN"):
        read_manifest(run)


def test_a_damaged_description_cannot_be_repaired(run):
    flip(run / "run.json", 100)
    for result in (verify(run), verify(run, repair=True)):
        (finding,) = result.findings
        assert (finding.file, finding.severity, finding.repairable) == ("run.json", "damage", False)
        assert str(run) not in finding.problem


# ---- what an interrupted write leaves


def test_what_was_never_committed_is_harmless_and_swept(run):
    junk = [
        run / "store.zarr/probe/sites/a/activation/c.6.0.0",
        run / "store.zarr/probe/epoch/c.0.partial",
        run / "commits/00000007.json.partial",
    ]
    for file in junk:
        file.write_bytes(b"half")
    result = verify(run, deep=True)
    assert result.valid
    assert not result.clean
    assert {f.file for f in result.findings} == {str(f.relative_to(run)) for f in junk}
    assert {f.severity for f in result.findings} == {"harmless"}
    repaired = verify(run, repair=True)
    assert repaired.clean
    assert any("deleted 2 files" in text for text in repaired.repairs)
    assert not any(file.exists() for file in junk)


def test_what_is_not_published_is_harmless_and_published(tmp_path):
    path = tmp_path / "run"
    writer = RecordingWriter.open(path, describe(SITES, samples=10), publish_interval=1e9)
    for moment in moments(SITES, samples=10, epochs=3):
        writer.commit(moment)
    writer._lock.release()  # as if the process were gone
    result = verify(path, deep=True)
    assert result.valid
    assert [f.problem for f in result.findings] == ["the last 4 commits are not published yet"]
    assert verify(path, repair=True).clean
    with xr.open_zarr(path / "store.zarr", group="probe") as probe:
        assert probe["epoch"].values.tolist() == [0, 1, 2, 3]


def test_a_recording_in_progress_is_verified_but_not_repaired(tmp_path):
    with RecordingWriter.open(tmp_path / "run", describe(SITES, samples=10), publish_interval=1e9) as writer:
        writer.commit(moments(SITES, samples=10, epochs=0)[0])
        (tmp_path / "run/store.zarr/probe/sites/a/activation/c.1.0.0").write_bytes(b"being written")
        result = verify(tmp_path / "run", deep=True)
        assert result.in_progress
        assert result.clean
        with pytest.raises(RecordingLockedError):
            verify(tmp_path / "run", repair=True)


def test_verifying_writes_nothing(run):
    (run / "recorder.lock").unlink()
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    verify(run, deep=True)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


# ---- repairing what is damaged


@pytest.mark.parametrize("how", ["flip", "truncate", "missing"])
def test_a_damaged_chunk_becomes_a_recorded_gap(run, how):
    data = (run / CHUNK).read_bytes()
    if how == "flip":
        flip(run / CHUNK, 77)
    elif how == "truncate":
        (run / CHUNK).write_bytes(data[:10])
    else:
        (run / CHUNK).unlink()
    (finding,) = verify(run, deep=True).findings
    assert finding.file == CHUNK
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean
    assert repaired.lost == {"probe": (1,), "weights": ()}
    assert repaired.snapshots == {"probe": 4, "weights": 5}
    assert (run / "quarantine" / CHUNK).exists() == (how != "missing")
    manifest = read_manifest(run)
    assert [index for _, index in manifest.snapshots("probe")] == [0, 2, 4, 5]
    assert manifest.gaps("probe") == (1,)
    assert [r.kind for r in manifest.records][-1] == "loss"
    with xr.open_zarr(run / "store.zarr", group="probe") as probe:
        assert probe["status"].values.tolist() == [0, 2, 0, 1, 0, 0]
    expected = moments(SITES, samples=10, epochs=5)
    np.testing.assert_array_equal(manifest.array("probe/sites/a/activation")[5], expected[5].probe["a"])
    with RecordingWriter.open(run, describe(SITES, samples=10)) as writer:
        assert writer.last_complete_epoch == 5
        writer.commit(moments(SITES, samples=10, epochs=6)[6])
    assert verify(run, deep=True).clean


def test_damaged_views_and_metadata_are_written_again(run):
    for file in stored_files(run / "store.zarr"):
        if file.parent.name not in {"activation", "weight"} or file.name == "zarr.json":
            flip(file, 40)
    assert not verify(run).valid
    repaired = verify(run, repair=True)
    assert repaired.clean
    assert repaired.lost == {"probe": (), "weights": ()}
    assert not any("lost" in text for text in repaired.repairs)


def test_metadata_of_something_else_is_found(run):
    """Sealed, but wrong: a node of another array, a root of another run, a view of other epochs."""
    node, other = (run / f"store.zarr/probe/sites/{site}/activation/zarr.json" for site in SITES)
    original = node.read_bytes()
    node.write_bytes(other.read_bytes())
    (finding,) = verify(run).findings
    assert "chunk_grid is" in finding.problem
    node.write_bytes(original)
    view, epochs = run / "store.zarr/probe/step/c.0", (run / "store.zarr/probe/epoch/c.0").read_bytes()
    original = view.read_bytes()
    view.write_bytes(epochs)
    (finding,) = verify(run).findings
    assert finding.problem == "does not hold what the commit log says"
    view.write_bytes(original)
    assert verify(run).clean
    record(run.parent / "other")
    shutil.copy(run.parent / "other/store.zarr/zarr.json", run / "store.zarr/zarr.json")
    assert any("is not the one that the store was published after" in f.problem for f in verify(run).findings)
    assert not verify(run, repair=True).valid


def test_a_chain_of_another_run_is_not_repaired_by_guessing(run):
    record(run.parent / "other", sites={"a": 6, "b": 4})
    shutil.copy(run.parent / "other/commits/00000003.json", run / "commits/00000003.json")
    result = verify(run, repair=True)
    assert not result.valid
    assert result.repairs == ()
    assert any("chain of commits is broken" in f.problem and not f.repairable for f in result.findings)


@pytest.mark.parametrize("how", ["flip", "missing"])
@pytest.mark.parametrize("sequence", [0, 2, 6])
def test_a_lost_record_becomes_a_gap(run, how, sequence):
    file = run / f"commits/{sequence:08d}.json"
    if how == "flip":
        flip(file, 333)
    else:
        file.unlink()
    result = verify(run, deep=True)
    assert f"record {sequence} is lost" in [f.problem for f in result.findings]
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    index = sequence if sequence < 4 else sequence - 1  # record 4 is the rewind
    assert repaired.lost == {"probe": (index,), "weights": (index,)}
    assert (
        f"record {sequence} is lost, and probe snapshot {index} and weights snapshot {index} with it"
        in repaired.repairs
    )
    quarantined = {str(f.relative_to(run / "quarantine")) for f in stored_files(run / "quarantine")}
    assert (f"commits/{sequence:08d}.json" in quarantined) == (how == "flip")
    assert f"store.zarr/probe/sites/a/activation/c.{index}.0.0" in quarantined
    assert not any("deleted" in text for text in repaired.repairs)
    manifest = read_manifest(run)
    assert index not in [i for _, i in manifest.snapshots("probe")]
    expected = moments(SITES, samples=10, epochs=5)
    for committed, snapshot in manifest.snapshots("probe"):
        array = manifest.array("probe/sites/b/activation")
        np.testing.assert_array_equal(array[snapshot], expected[committed.epoch].probe["b"])
    with xr.open_zarr(run / "store.zarr", group="probe") as probe:
        assert probe["status"].values[index] == 2
        assert probe["epoch"].values[index] == -1
    with RecordingWriter.open(run, describe(SITES, samples=10)) as writer:
        writer.commit(moments(SITES, samples=10, epochs=6)[6])
    assert verify(run, deep=True).clean


def test_a_lost_rewind_loses_no_snapshot(run):
    (run / "commits/00000004.json").unlink()
    repaired = verify(run, repair=True)
    assert repaired.clean
    assert "record 4 is lost, and no snapshot with it" in repaired.repairs
    assert repaired.lost == {"probe": (), "weights": ()}


def test_several_records_in_a_row_are_lost(run):
    for sequence in (1, 2, 5, 6):
        (run / f"commits/{sequence:08d}.json").unlink()
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    assert repaired.lost == {"probe": (1, 2, 4, 5), "weights": (1, 2, 4, 5)}


def test_a_whole_log_is_lost(run):
    shutil.rmtree(run / "commits")
    with pytest.raises(CorruptRecordingError, match="commits: missing"):
        read_manifest(run)
    repaired = verify(run, repair=True)
    assert repaired.clean, repaired.findings
    assert repaired.lost["probe"] == (0, 1, 2, 3, 4, 5)
    assert len(stored_files(run / "quarantine")) == 48
    assert read_manifest(run).live == ()


def test_without_log_and_root_nothing_is_deleted(run):
    """Neither knows any longer what was committed; the data must survive opening and repairing all the same."""
    for file in (run / "commits").iterdir():
        file.unlink()
    flip(run / "store.zarr/zarr.json", 50)
    data = {f.read_bytes() for f in run.rglob("c.*") if f.parent.name in {"activation", "weight"}}
    copy = shutil.copytree(run, run.parent / "copy")
    verify(run, repair=True)
    RecordingWriter.open(copy, describe(SITES, samples=10)).close()
    for path in (run, copy):
        assert {f.read_bytes() for f in stored_files(path / "quarantine")} >= data
        assert verify(path).clean


@pytest.mark.parametrize("bit_of", ["line", "newline"])
def test_a_damaged_segment_keeps_its_good_records(original, tmp_path, bit_of):
    path = shutil.copytree(original, tmp_path / "run")
    segment = path / "commits/segment-00000000-00000063.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    start = 8 * len(b"".join(lines[:10]))
    flip(segment, start + 99 if bit_of == "line" else start - 8)
    result = verify(path)
    lost = [10] if bit_of == "line" else [9, 10]
    assert [f.problem for f in result.findings if "record" in f.problem] == [f"record {n} is lost" for n in lost]
    repaired = verify(path, repair=True)
    assert repaired.clean, repaired.findings
    assert [r.sequence for r in read_manifest(path).records if r.kind == "gap"] == lost
    assert len(read_manifest(path).live) == SEGMENT_LENGTH + 3 - len(lost)
    assert segment.exists()  # folded again
    assert (path / "quarantine/commits" / segment.name).exists()


def test_a_damaged_copy_beside_a_good_one_loses_nothing(original, tmp_path):
    path = shutil.copytree(original, tmp_path / "run")
    segment = path / "commits/segment-00000000-00000063.jsonl"
    line = segment.read_bytes().splitlines(keepends=True)[5]
    single = path / "commits/00000005.json"
    single.write_bytes(line)
    result = verify(path)
    assert [(f.file, f.severity) for f in result.findings] == [("commits/00000005.json", "harmless")]
    flip(single, 9)
    assert [(f.file, f.severity) for f in verify(path).findings] == [("commits/00000005.json", "damage")]
    repaired = verify(path, repair=True)
    assert repaired.clean, repaired.findings
    assert not single.exists()
    assert all(r.kind == "moment" for r in read_manifest(path).records)


@pytest.mark.parametrize("point", range(8))
def test_a_repair_that_is_cut_off_can_be_repeated(run, monkeypatch, point):
    flip(run / "commits/00000002.json", 200)
    flip(run / CHUNK, 30)
    flip(run / "store.zarr/zarr.json", 30)
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
        if point < 7:
            with pytest.raises(KeyboardInterrupt):
                verify(run, deep=True, repair=True)
    repaired = verify(run, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    assert repaired.lost == {"probe": (1, 2), "weights": (2,)}
    assert len(list((run / "quarantine").rglob("c.1.0.0"))) == 1


def test_quarantined_files_never_overwrite_each_other(run):
    for number in range(3):
        flip(run / CHUNK, 7 + number)
        (run / CHUNK).rename(run / CHUNK)
        repair.quarantine(run, run / CHUNK, keep=True)
    names = {f.name for f in stored_files(run / "quarantine")}
    assert names == {"c.1.0.0", "c.1.0.0~1", "c.1.0.0~2"}


def test_a_log_that_does_not_fit_the_run_is_refused(run):
    """Sealed and chained, but of arrays that run.json does not have: only a bug or a forger writes this."""
    document = unseal((run / "run.json").read_bytes(), where="x", indent=True)
    document["fingerprint"]["sites"]["c"] = {
        **document["fingerprint"]["sites"]["b"],
        "path": "probe/sites/c/activation",
    }
    (run / "run.json").write_bytes(seal(document, indent=True))
    with pytest.raises(CorruptRecordingError, match=r"record 0 does not fit run\.json"):
        read_manifest(run)
    result = verify(run, repair=True)
    assert not result.valid
    assert any("does not fit" in f.problem and not f.repairable for f in result.findings)


def test_node_checks_are_on_bytes(run):
    data = (run / "store.zarr/zarr.json").read_bytes()
    assert check_node(data)
    assert not check_node(data + b" ")
    assert not check_node(b"")
    assert crc32(b"123456789") == "cbf43926"
