"""The commit log: records, the chain, segments, and what the log says when it is read through."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import SEGMENT_LENGTH, fold_segments, read_log, write_record
from dynome_recorder.storage.records import GENESIS, CommitRecord, replay_log


def write_log(folder, length, **members):
    folder.mkdir(exist_ok=True)
    records = []
    for sequence in range(length):
        record = CommitRecord(
            sequence=sequence,
            previous=records[-1].checksum if records else GENESIS,
            kind="moment",
            time=float(sequence),
            epoch=sequence,
            step=sequence,
            epoch_complete=True,
            snapshots={"probe": sequence},
            files={f"probe/sites/a/activation/c.{sequence}.0.0": (10, "01234567")},
            **members,
        )
        records.append(write_record(folder, record))
    return records


@given(
    st.builds(
        CommitRecord,
        sequence=st.integers(0, 10**9),
        previous=st.text(alphabet="0123456789abcdef", min_size=8, max_size=8),
        kind=st.just("moment"),
        time=st.floats(0, 1e11),
        epoch=st.integers(0, 10**6),
        step=st.integers(0, 10**9),
        epoch_complete=st.booleans(),
        parameters=st.text(max_size=10),
        snapshots=st.dictionaries(st.sampled_from(["probe", "weights"]), st.integers(0, 10**6)),
        files=st.dictionaries(st.text(min_size=1, max_size=10), st.tuples(st.integers(0, 10**12), st.just("0a1b2c3d"))),
        health=st.dictionaries(st.text(min_size=1), st.dictionaries(st.just("nan"), st.integers(1, 9), min_size=1)),
    )
)
@settings(deadline=None)
def test_a_record_reads_back_as_it_was(record):
    line = record.encode()
    assert line.count(b"\n") == 1
    read = CommitRecord.decode(line, where="x")
    assert read.encode() == line
    for name in ("sequence", "previous", "time", "epoch", "step", "parameters", "snapshots", "files", "health"):
        assert getattr(read, name) == getattr(record, name)


def test_unknown_members_are_ignored_and_missing_ones_refused(tmp_path):
    from dynome_recorder.storage.format import seal

    document = {"sequence": 0, "previous": GENESIS, "kind": "moment", "time": 1.0, "invented": {"later": 1}}
    assert CommitRecord.decode(seal(document), where=tmp_path).time == 1.0
    for broken in ({"sequence": 0}, {**document, "files": [1]}, {**document, "sequence": None}):
        with pytest.raises(CorruptRecordingError, match="not a commit record"):
            CommitRecord.decode(seal(broken), where=tmp_path)


@pytest.mark.parametrize("length", [0, 1, SEGMENT_LENGTH - 1, SEGMENT_LENGTH, 2 * SEGMENT_LENGTH + 3])
def test_folding_changes_nothing_but_the_number_of_files(tmp_path, length):
    folder = tmp_path / "commits"
    records = write_log(folder, length)
    assert read_log(folder) == tuple(records)
    fold_segments(folder, length=length)
    assert read_log(folder) == tuple(records)
    assert len(list(folder.iterdir())) == length // SEGMENT_LENGTH + length % SEGMENT_LENGTH
    fold_segments(folder, length=length)
    assert read_log(folder) == tuple(records)


def test_folding_that_was_cut_off_is_finished(tmp_path, monkeypatch):
    folder = tmp_path / "commits"
    records = write_log(folder, SEGMENT_LENGTH + 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            fold_segments(folder, length=len(records))
    (folder / "00000003.json").unlink()  # deleted, the others not yet
    assert read_log(folder) == tuple(records)
    fold_segments(folder, length=len(records))
    assert read_log(folder) == tuple(records)
    assert len(list(folder.iterdir())) == 3


def test_copies_that_differ_are_refused(tmp_path):
    folder = tmp_path / "commits"
    write_log(folder, SEGMENT_LENGTH)
    record = read_log(folder)[5]
    fold_segments(folder, length=SEGMENT_LENGTH)
    (folder / "00000005.json").write_bytes(replace(record, step=6).encode())
    with pytest.raises(CorruptRecordingError, match="two different copies"):
        read_log(folder)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("sequence", [0, 5, SEGMENT_LENGTH - 1])
def test_a_missing_record_is_named(tmp_path, folded, sequence):
    folder = tmp_path / "commits"
    write_log(folder, SEGMENT_LENGTH + 1)
    if folded:
        fold_segments(folder, length=SEGMENT_LENGTH + 1)
        segment = next(folder.glob("segment-*"))
        lines = segment.read_bytes().splitlines(keepends=True)
        segment.write_bytes(b"".join(lines[:sequence] + lines[sequence + 1 :]))
        name = "segment-00000000-00000063.jsonl"
    else:
        (folder / f"{sequence:08d}.json").unlink()
        name = f"{sequence:08d}.json"
    with pytest.raises(CorruptRecordingError, match=name):
        read_log(folder)


def test_records_of_another_run_break_the_chain(tmp_path):
    write_log(tmp_path / "one", 4)
    write_log(tmp_path / "other", 4, parameters="different")
    (tmp_path / "one" / "00000002.json").write_bytes((tmp_path / "other" / "00000002.json").read_bytes())
    with pytest.raises(CorruptRecordingError, match="chain"):
        read_log(tmp_path / "one")


def test_a_record_under_another_name_is_refused(tmp_path):
    folder = tmp_path / "commits"
    write_log(folder, 3)
    (folder / "00000002.json").write_bytes((folder / "00000001.json").read_bytes())
    with pytest.raises(CorruptRecordingError, match="holds record 1 in place of 2"):
        read_log(folder)


def test_an_unknown_kind_is_refused(tmp_path):
    folder = tmp_path / "commits"
    folder.mkdir()
    write_record(folder, CommitRecord(sequence=0, previous=GENESIS, kind="other", time=0.0))
    with pytest.raises(CorruptRecordingError, match="unknown kind of record 'other'"):
        read_log(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CorruptRecordingError, match="commits: missing"):
        read_log(tmp_path / "commits")
    (tmp_path / "file").touch()
    with pytest.raises(CorruptRecordingError, match="not a folder"):
        read_log(tmp_path / "file")


def test_a_rewind_supersedes_what_came_after_and_deletes_nothing(tmp_path):
    records = write_log(tmp_path / "commits", 5)
    rewind = CommitRecord(sequence=5, previous=records[-1].checksum, kind="rewind", time=5.0, keep=2)
    again = CommitRecord(sequence=6, previous="", kind="moment", time=6.0, epoch=3, snapshots={"probe": 5})
    state = replay_log([*records, rewind, again])
    assert [record.sequence for record in state.live] == [0, 1, 2, 6]
    assert state.status["probe"] == (0, 0, 0, 1, 1, 0)
    assert len(state.files) == 5
    to_the_start = CommitRecord(sequence=7, previous="", kind="rewind", time=7.0, keep=-1)
    assert replay_log([*records, rewind, again, to_the_start]).live == ()


def test_a_loss_and_a_gap_show_as_status_2(tmp_path):
    records = write_log(tmp_path / "commits", 4)
    loss = CommitRecord(sequence=4, previous="", kind="loss", time=0.0, lost=("probe/sites/a/activation/c.1.0.0",))
    gap = CommitRecord(sequence=2, previous="", kind="gap", time=0.0, snapshots={"probe": 2}, replaces="x")
    state = replay_log([records[0], records[1], gap, records[3], loss])
    assert state.status["probe"] == (0, 2, 2, 0)
    assert [record.sequence for record in state.live] == [0, 1, 3]
    assert sorted(state.files) == ["probe/sites/a/activation/c.0.0.0", "probe/sites/a/activation/c.3.0.0"]
