"""Several ranks write one recording: a moment counts when all have committed it, and none ever shows more."""

import itertools
import os
import threading
from dataclasses import replace
from pathlib import Path

import killed_writer
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_writer import BATCH, moment

from dynome_recorder.background import BackgroundWriter, Pending
from dynome_recorder.errors import (
    CorruptRecordingError,
    FingerprintError,
    InvalidArgumentError,
    RecordingLockedError,
    StorageError,
)
from dynome_recorder.storage import commits, committing
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.run import share_of
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription


def open_ranks(path, world, *, parts=None, mode="ranks", **options):
    """Open a recording on every rank, rank 0 first; returns the writers."""
    description = killed_writer.describe(mode, world if parts is None else parts)
    writers = [RecordingWriter.open(path, description, world=world, **options)]
    first = writers[0].next_sequence
    writers += [
        RecordingWriter.open(path, description, rank=rank, world=world, first_sequence=first, **options)
        for rank in range(1, world)
    ]
    return writers


def close_all(writers):
    for writer in reversed(writers):
        writer.close()


def commit_all(writers, epochs, *, parts=None, skipped=None, mode="ranks"):
    """Commit epochs on all ranks; `skipped` says what a rank leaves out: (epoch, rank) to streams."""
    world = len(writers)
    for epoch in epochs:
        for rank, writer in enumerate(writers):
            writer.commit(
                moment(
                    epoch,
                    mode=mode,
                    rank=rank,
                    world=world,
                    parts=world if parts is None else parts,
                    skipped=(skipped or {}).get((epoch, rank), ()),
                )
            )


def check_holds(path, epochs, *, parts, worlds, skipped=None, mode="ranks"):
    """Check that a recording holds exactly these epochs, every value of every rank; `worlds` per epoch."""
    manifest = read_manifest(path)
    assert [record.epoch for record in manifest.live] == list(epochs)
    left_out = {(epoch, stream) for (epoch, _), streams in (skipped or {}).items() for stream in streams}
    due = {
        stream: [epoch for epoch in epochs if stream in killed_writer.due(mode, epoch)]
        for stream in ("probe", "weights", "batches")
    }
    rows = {}
    for stream, wanted in due.items():
        snapshots = manifest.snapshots(stream)
        assert [record.epoch for record, _ in snapshots] == [e for e in wanted if (e, stream) not in left_out]
        assert len(manifest.gaps(stream)) == sum((epoch, stream) in left_out for epoch in wanted)
        rows[stream] = [(record, index) for record, index in snapshots]
    for site in killed_writer.UNITS:
        array = manifest.array(manifest.sites[site]["path"])
        for record, index in rows["probe"]:
            np.testing.assert_array_equal(array[index], killed_writer.activations(record.epoch)[site])
            count = record.epoch * writers_with_rows(worlds, record, parts)
            assert record.health == ({"small": {"nan": count}} if count else {})
    stored = manifest.array("weights/w/weight")
    for record, index in rows["weights"]:
        np.testing.assert_array_equal(stored[index], killed_writer.weights(record.epoch))
    if not manifest.batches:
        return manifest
    ids = manifest.array("batches/sample_id")
    for record, index in rows["batches"]:
        world = worlds[record.epoch]
        samples = [killed_writer.batch_samples(record.epoch, rank) for rank in range(min(world, parts))]
        expected = np.full(BATCH * parts, -1)
        for rank, count in enumerate(samples):
            if record.epoch % 5:
                expected[rank * BATCH : rank * BATCH + count] = killed_writer.sample_ids(record.epoch, rank)
        np.testing.assert_array_equal(ids[index], expected)
        np.testing.assert_array_equal(
            manifest.batch_rows(record),
            [i % BATCH < samples[i // BATCH] if i // BATCH < len(samples) else False for i in range(BATCH * parts)],
        )
        for kind, entries in (("activation", manifest.batches), ("gradient", manifest.gradients)):
            for site, values in killed_writer.whole_batch(record.epoch, world, parts, kind).items():
                np.testing.assert_array_equal(manifest.array(entries[site]["path"])[index], values)
    return manifest


def writers_with_rows(worlds, record, parts):
    return sum(bool(share_of(rank, worlds[record.epoch], parts)) for rank in range(worlds[record.epoch]))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_what_all_ranks_commit_reads_back_whole(tmp_path, world):
    path = tmp_path / "run"
    writers = open_ranks(path, world)
    commit_all(writers, range(12))
    assert {writer.next_sequence for writer in writers} == {12}
    assert all(writer.wait_committed(11, 1.0) for writer in writers)
    close_all(writers)
    check_holds(path, range(12), parts=world, worlds=dict.fromkeys(range(12), world))
    assert verify(path, deep=True).clean
    with xr.open_zarr(path / "store.zarr", group="batches", consolidated=True) as view:
        samples = [
            [killed_writer.batch_samples(epoch, rank) for rank in range(world)] for epoch in range(12) if epoch % 4
        ]
        np.testing.assert_array_equal(view["samples"].values, samples)
        assert view["status"].values.tolist() == [0] * 9
    with xr.open_zarr(path / "store.zarr", group="batches/sites/tokens", consolidated=True) as view:
        last = killed_writer.whole_batch(11, world, world, "gradient")["tokens"]
        np.testing.assert_array_equal(view["gradient"].values[-1], last)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_nothing_is_shown_before_the_last_rank_has_committed(tmp_path, order):
    path = tmp_path / "run"
    writers = open_ranks(path, 3, publish_interval=0)
    commit_all(writers, range(2))
    for position, rank in enumerate(order):
        assert len(read_manifest(path).live) == 2
        with xr.open_zarr(path / "store.zarr", group="probe", consolidated=True) as view:
            assert view["epoch"].values.tolist() == [0]
        assert not any(writers[r].wait_committed(2, 0.0) for r in order[:position])
        writers[rank].commit(moment(2, mode="ranks", rank=rank, world=3, parts=3))
    assert all(writer.wait_committed(2, 0.0) for writer in writers)
    assert len(read_manifest(path).live) == 3
    writers[0].commit(moment(3, mode="ranks", rank=0, world=3, parts=3))
    with xr.open_zarr(path / "store.zarr", group="metrics/epoch", consolidated=True) as view:
        assert view["epoch"].values.tolist() == [0, 1, 2]
    assert writers[0].last.epoch == writers[0].last_complete_epoch == 2
    writers[0].close()
    with xr.open_zarr(path / "store.zarr", group="metrics/epoch", consolidated=True) as view:
        assert view["epoch"].values.tolist() == [0, 1, 2]
    close_all(writers[1:])


def test_wait_committed_waits_for_the_slow(tmp_path):
    writers = open_ranks(tmp_path / "run", 2)
    writers[0].commit(moment(0, mode="ranks", rank=0, world=2, parts=2))
    assert writers[0].wait_committed(0, 0.05) is False
    timer = threading.Timer(0.1, writers[1].commit, [moment(0, mode="ranks", rank=1, world=2, parts=2)])
    timer.start()
    assert writers[0].wait_committed(0, 10.0) is True
    timer.join()
    assert writers[1].wait_committed(0, 10.0) is True
    close_all(writers)


def test_a_stream_that_one_rank_left_out_is_a_gap_of_all(tmp_path):
    path = tmp_path / "run"
    skipped = {(3, 1): ("probe",), (5, 0): ("batches",), (6, 0): ("probe", "weights"), (7, 2): ("batches",)}
    writers = open_ranks(path, 3)
    commit_all(writers, range(10), skipped=skipped)
    close_all(writers)
    check_holds(path, range(10), parts=3, worlds=dict.fromkeys(range(10), 3), skipped=skipped)
    with xr.open_zarr(path / "store.zarr", group="probe", consolidated=True) as view:
        assert view["status"].values.tolist() == [0, 2, 2, 0]
    assert verify(path, deep=True).clean
    writers = open_ranks(path, 3)
    commit_all(writers, range(10, 14))
    close_all(writers)
    check_holds(path, range(14), parts=3, worlds=dict.fromkeys(range(14), 3), skipped=skipped)
    assert verify(path, deep=True).clean


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=2, max_size=3),
    st.data(),
)
def test_any_world_goes_on_with_any_other(tmp_path_factory, parts, sessions, data):
    """Sessions of any size share the same parts out; each may be cut off with ranks at different places."""
    path = tmp_path_factory.mktemp("ranks") / "run"
    worlds, epoch = {}, 0
    for world, count in sessions:
        writers = open_ranks(path, world, parts=parts, publish_interval=data.draw(st.sampled_from([0, 1e9])))
        assert writers[0].next_sequence == epoch
        ahead = [data.draw(st.integers(0, 2), label=f"rank {rank} ahead") for rank in range(world)]
        ahead[data.draw(st.integers(0, world - 1))] = 0
        for number in range(epoch, epoch + count + max(ahead)):
            for rank, writer in enumerate(writers):
                if number < epoch + count + ahead[rank]:
                    writer.commit(moment(number, mode="ranks", rank=rank, world=world, parts=parts))
            if number < epoch + count:
                worlds[number] = world
        if data.draw(st.booleans(), label="killed"):
            for writer in writers:
                writer._workers.close()
                writer._lock.release()
        else:
            close_all(writers)
        epoch += count
        check_holds(path, range(epoch), parts=parts, worlds=worlds)
        assert verify(path, deep=True).valid
    RecordingWriter.open(path, killed_writer.describe("ranks", parts)).close()
    check_holds(path, range(epoch), parts=parts, worlds=worlds)
    assert verify(path, deep=True).clean


def test_ranks_fold_behind_rank_zero_and_never_ahead(tmp_path):
    """A segment must never hold what a later opening sweeps: not even where one rank is far behind."""
    path = tmp_path / "run"
    description = RunDescription(sites={"a": ArraySpec((4, 2), "float32", ("sample", "unit"), rows=2)}, parts=2)
    values = np.zeros((2, 2), np.float32)

    def some(number):
        return Moment(epoch=number, step=number, probe={"a": values + number} if number % 10 == 0 else None)

    first = RecordingWriter.open(path, description, world=2)
    second = RecordingWriter.open(path, description, rank=1, world=2, first_sequence=0)
    for number in range(150):
        first.commit(some(number))
    assert not list(path.glob("commits/segment-*"))
    for number in range(140):
        second.commit(some(number))
        if number == 70:
            first.flush()
            first.commit(some(150))
            assert [p.name for p in path.glob("commits/segment-*")] == ["segment-00000000-00000063.jsonl"]
    first.commit(some(151))
    second.commit(some(140))
    assert sorted(p.name for p in path.glob("commits/segment-*")) == [
        "segment-00000000-00000063.jsonl",
        "segment-00000000-00000063.r1.jsonl",
        "segment-00000064-00000127.jsonl",
        "segment-00000064-00000127.r1.jsonl",
    ]
    close_all([first, second])
    assert len(read_manifest(path).live) == 141
    assert verify(path, deep=True).valid
    with RecordingWriter.open(path, description) as recording:
        assert recording.next_sequence == 141
        assert not list(path.glob("commits/0000014[1-9]*")) + list(path.glob("commits/0000015*"))
    assert verify(path, deep=True).clean
    assert read_manifest(path).array("probe/sites/a/activation")[14].tolist() == [[140.0] * 2] * 4


def test_thousands_of_moments_of_ranks_stay_few_files(tmp_path):
    path = tmp_path / "run"
    description = RunDescription(sites={"a": ArraySpec((4, 2), "float32", ("sample", "unit"), rows=2)}, parts=2)
    first = RecordingWriter.open(path, description, world=2, publish_interval=1e9)
    second = RecordingWriter.open(path, description, rank=1, world=2, first_sequence=0)
    for start in range(0, 1024, 32):
        for writer in (first, second):
            writer.commit_all([Moment(epoch=number, step=number) for number in range(start, start + 32)])
    assert len(list(path.glob("commits/*"))) < 2 * (1024 // 64) + 2 * 64 + 2
    close_all([second, first])
    assert len(read_manifest(path).live) == 1024
    assert verify(path, deep=True).clean


# ---- what a crash leaves


def test_what_not_all_ranks_committed_is_swept(tmp_path):
    path = tmp_path / "run"
    writers = open_ranks(path, 2, publish_interval=0)
    commit_all(writers, range(4))
    for epoch in (4, 5, 6):
        writers[0].commit(moment(epoch, mode="ranks", rank=0, world=2, parts=2))
    close_all(writers)
    assert len(read_manifest(path).live) == 4
    assert (path / "commits/00000006.json").exists()
    assert verify(path, deep=True).valid
    writers = open_ranks(path, 2)
    assert writers[0].next_sequence == 4
    assert not (path / "commits/00000004.json").exists()
    assert {p.name for p in (path / "store.zarr/probe/sites/small/activation").glob("c.*")} == {
        f"c.{index}.{part}.0" for index in range(2) for part in range(2)
    }
    commit_all(writers, range(4, 8))
    close_all(writers)
    check_holds(path, range(8), parts=2, worlds=dict.fromkeys(range(8), 2))
    assert verify(path, deep=True).clean


def test_without_a_root_what_is_swept_goes_to_the_quarantine(tmp_path):
    """The root may have said that those records were committed; now nobody can tell."""
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    commit_all(writers, range(3))
    writers[0].commit(moment(3, mode="ranks", rank=0, world=2, parts=2))
    close_all(writers)
    (path / "store.zarr/zarr.json").unlink()
    close_all(open_ranks(path, 2))
    assert (path / "quarantine/commits/00000003.json").exists()
    assert (path / "quarantine/store.zarr/probe/sites/small/activation/c.1.0.0").exists()
    assert verify(path, deep=True).clean


def test_a_crash_while_sweeping_is_finished_by_the_next_opening(tmp_path, monkeypatch):
    path = tmp_path / "run"
    writers = open_ranks(path, 3)
    commit_all(writers, range(3))
    for rank in (0, 1):
        for epoch in (3, 4):
            writers[rank].commit(moment(epoch, mode="ranks", rank=rank, world=3, parts=3))
    close_all(writers)
    real = Path.unlink
    for allowed in (0, 1, 1):
        left = [allowed]

        def unlink(self, missing_ok=False, left=left):
            if self.parent.name == "commits":
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            real(self, missing_ok=missing_ok)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", unlink)
            RecordingWriter.open(path, killed_writer.describe("ranks", 3), world=3)
        assert len(read_manifest(path).live) == 3
        assert verify(path, deep=True).valid
    writers = open_ranks(path, 3)
    commit_all(writers, range(3, 6))
    close_all(writers)
    check_holds(path, range(6), parts=3, worlds=dict.fromkeys(range(6), 3))
    assert verify(path, deep=True).clean


def test_a_rank_that_outlived_its_session_is_not_written_beside(tmp_path):
    """Rank 0 was killed and comes back; rank 1 of the old session still writes under the old numbers."""
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    commit_all(writers, range(3))
    writers[0].close()
    with pytest.raises(RecordingLockedError, match="another recorder writes here"):
        RecordingWriter.open(path, killed_writer.describe("ranks", 2), world=2)
    writers[1].commit(moment(3, mode="ranks", rank=1, world=2, parts=2))
    writers[1].close()
    close_all(open_ranks(path, 2))
    check_holds(path, range(3), parts=2, worlds=dict.fromkeys(range(3), 2))


def test_a_part_of_another_moment_is_not_taken_for_this_one(tmp_path):
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    commit_all(writers, range(2))
    writers[1].commit(moment(7, mode="ranks", rank=1, world=2, parts=2))
    with pytest.raises(CorruptRecordingError, match=r"00000002\.r1\.json: is of another moment"):
        writers[0].commit(moment(2, mode="ranks", rank=0, world=2, parts=2))
    with pytest.raises(StorageError, match="open the recording again"):
        writers[0].commit(moment(3, mode="ranks", rank=0, world=2, parts=2))
    close_all(writers)


# ---- going back


def test_all_ranks_go_back_together(tmp_path):
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    commit_all(writers, range(7))
    close_all(writers)
    writers = open_ranks(path, 2)
    for writer in writers:
        writer.rewind_to(3)
        writer.rewind_to(3)  # nothing left to supersede: no second record
    assert {writer.next_sequence for writer in writers} == {8}
    assert writers[0].last_complete_epoch == 3
    commit_all(writers, range(4, 9))
    for writer in writers:
        writer.rewind_to(-1)
    assert {writer.next_sequence for writer in writers} == {14}
    commit_all(writers, range(2))
    close_all(writers)
    manifest = read_manifest(path)
    assert [record.kind for record in manifest.records].count("rewind") == 2
    check_holds(path, range(2), parts=2, worlds=dict.fromkeys(range(2), 2))
    assert verify(path, deep=True).clean


def test_going_back_needs_a_moment_and_what_all_have_committed(tmp_path):
    writers = open_ranks(tmp_path / "run", 2)
    commit_all(writers, range(3))
    with pytest.raises(InvalidArgumentError, match="record 9 is no moment to go back to"):
        writers[0].rewind_to(9)
    writers[0].commit(moment(3, mode="ranks", rank=0, world=2, parts=2))
    with pytest.raises(StorageError, match="another rank has not committed yet"):
        writers[0].rewind_to(1)
    writers[1].commit(moment(3, mode="ranks", rank=1, world=2, parts=2))
    for writer in writers:
        writer.rewind_to(1)
    close_all(writers)
    check_holds(tmp_path / "run", range(2), parts=2, worlds=dict.fromkeys(range(2), 2))


# ---- opening


def test_ranks_have_locks_of_their_own(tmp_path):
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    description = killed_writer.describe("ranks", 2)
    for rank in range(2):
        with pytest.raises(RecordingLockedError):
            RecordingWriter.open(path, description, rank=rank, world=2)
    assert (path / "recorder.r1.lock").exists()
    close_all(writers)
    close_all(open_ranks(path, 2))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rank": 1, "world": 1}, InvalidArgumentError, "rank must be one of 0 to 0"),
        ({"rank": 1, "world": 2, "first_sequence": 5}, StorageError, "rank 0 goes on with record 5, rank 1 sees 3"),
    ],
)
def test_an_opening_that_cannot_be_meant(tmp_path, options, error, match):
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    commit_all(writers, range(3))
    close_all(writers)
    with pytest.raises(error, match=match):
        RecordingWriter.open(path, killed_writer.describe("ranks", 2), **options)
    close_all(open_ranks(path, 2))  # no lock was left


def test_other_numbers_of_parts_are_another_recording(tmp_path):
    close_all(open_ranks(tmp_path / "run", 2))
    with pytest.raises(FingerprintError):
        RecordingWriter.open(tmp_path / "run", killed_writer.describe("ranks", 3), world=3)


def test_other_ranks_write_nothing_that_is_not_theirs(tmp_path):
    path = tmp_path / "run"
    writers = open_ranks(path, 2, publish_interval=0)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    writers[1].commit(moment(0, mode="ranks", rank=1, world=2, parts=2))
    writers[1].flush()
    writers[1].close()
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert before.items() <= after.items()
    assert sorted(str(file.relative_to(path)) for file in after.keys() - before.keys()) == [
        "commits/00000000.r1.json",
        "store.zarr/probe/sites/small/activation/c.0.1.0",
        "store.zarr/probe/sites/wide/activation/c.0.1.0",
    ]
    writers[0].close()


# ---- batches on one rank


def test_batches_of_any_size_read_back(tmp_path):
    path = tmp_path / "run"
    with RecordingWriter.open(path, killed_writer.describe("batches", 1)) as recording:
        for epoch in range(12):
            recording.commit(moment(epoch, mode="batches"))
    check_holds(path, range(12), parts=1, worlds=dict.fromkeys(range(12), 1), mode="batches")
    assert verify(path, deep=True).clean


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: replace(m, rows=BATCH + 1), "a batch of 5 samples does not fit the batch size of 4"),
        (lambda m: replace(m, rows=-1), "does not fit the batch size"),
        (
            lambda m: replace(m, rows=m.rows - 1),
            r"small must be float32 of shape \(1, 7\), got float32 of shape \(2, 7\)",
        ),
        (lambda m: replace(m, gradients=None), "each of its gradients once; differs in small"),
        (lambda m: replace(m, batches={"small": m.batches["small"]}), "each of its batches once; differs in tokens"),
        (lambda m: replace(m, sample_ids=np.arange(3)), r"sample_id must be int64 of shape \(2,\)"),
        (lambda m: replace(m, sample_ids=np.zeros(2, np.int32)), "sample_id must be int64"),
        (lambda m: replace(m, batch_health={"wide": {"nan": 1}}), "health of 'wide' is unknown"),
        (lambda m: replace(m, skipped=("batches",)), "'batches' cannot be skipped; it is given or not recorded"),
        (lambda m: replace(m, skipped=("other",)), "'other' cannot be skipped"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, match):
    given = moment(1, mode="batches")
    assert given.rows == 2
    with RecordingWriter.open(tmp_path / "run", killed_writer.describe("batches", 1)) as recording:
        recording.commit(moment(0, mode="batches"))
        with pytest.raises(InvalidArgumentError, match=match):
            recording.commit(change(given))
        recording.commit(given)
    check_holds(tmp_path / "run", range(2), parts=1, worlds=dict.fromkeys(range(2), 1), mode="batches")
    assert verify(tmp_path / "run", deep=True).clean


def test_batches_that_are_not_recorded_are_refused(tmp_path):
    with RecordingWriter.open(tmp_path / "run", killed_writer.describe("single", 1)) as recording:
        with pytest.raises(InvalidArgumentError, match="has no batches to record; give None"):
            recording.commit(replace(moment(1, mode="batches"), batch_health={}))
        with pytest.raises(InvalidArgumentError, match="has no batches to record; give None"):
            recording.commit(replace(moment(1), batches={}))
        with pytest.raises(InvalidArgumentError, match="'batches' cannot be skipped; it is given or not recorded"):
            recording.commit(replace(moment(1), skipped=("batches",)))
        recording.commit(moment(1))


def test_a_probe_share_of_the_wrong_length_is_refused(tmp_path):
    writers = open_ranks(tmp_path / "run", 3)
    given = moment(0, mode="ranks", rank=2, world=3, parts=3)
    with pytest.raises(
        InvalidArgumentError, match=r"small must be float32 of shape \(6, 7\), got float32 of shape \(5, 7\)"
    ):
        writers[2].commit(replace(given, probe={site: values[:-1] for site, values in given.probe.items()}))
    close_all(writers)


# ---- groups


def test_a_group_is_as_good_as_one_by_one(tmp_path):
    for name, sizes in (("one", [1] * 30), ("groups", [7, 1, 20, 2])):
        clock = iter(range(1_700_000_000, 1_700_001_000)).__next__
        with RecordingWriter.open(
            tmp_path / name, killed_writer.describe("batches", 1), run_id="0" * 32, clock=clock
        ) as recording:
            epochs = iter(range(30))
            for size in sizes:
                group = [moment(epoch, mode="batches") for epoch in itertools.islice(epochs, size)]
                records = recording.commit_all(group)
                assert [record.epoch for record in records] == [given.epoch for given in group]
    trees = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("one", "groups")
    ]
    assert trees[0] == trees[1]


def test_a_moment_that_does_not_fit_stops_a_group_behind_those_before_it(tmp_path):
    group = [moment(0), moment(1), replace(moment(2), weights={}), moment(3)]
    with RecordingWriter.open(tmp_path / "run", killed_writer.describe("single", 1)) as recording:
        with pytest.raises(InvalidArgumentError, match="each of its weights once"):
            recording.commit_all(group)
        assert recording.next_sequence == 2
        recording.commit_all([moment(2), moment(3)])
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1, 2, 3]


@pytest.mark.usefixtures("real_sync")
def test_a_group_syncs_each_folder_once_and_every_file_before_its_record(tmp_path, monkeypatch):
    events = []
    real_fsync, real_commit = os.fsync, commits.StagedRecord.commit

    def fsync(descriptor):
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def commit(self):
        events.append(f"rename {self.path.name}")
        real_commit(self)

    path = tmp_path / "run"
    with RecordingWriter.open(path, killed_writer.describe("single", 1), publish_interval=1e9) as recording:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(commits.StagedRecord, "commit", commit)
        records = recording.commit_all([moment(epoch) for epoch in range(6)])
        renames = [events.index(f"rename {record.sequence:08d}.json") for record in records]
        assert renames == list(range(renames[0], renames[0] + 6))
        files = [str(path / "store.zarr" / name) for record in records for name in record.files]
        folders = {str(Path(file).parent) for file in files}
        partial = [str(path / f"commits/{record.sequence:08d}.json.partial") for record in records]
        assert sorted(events[: renames[0]]) == sorted([*files, *folders, *partial])
        assert events[renames[-1] + 1 :] == [str(path / "commits")]


@pytest.mark.parametrize("failing", range(6))
def test_a_group_that_is_cut_off_between_its_renames_is_a_prefix(tmp_path, monkeypatch, failing):
    path = tmp_path / "run"
    recording = RecordingWriter.open(path, killed_writer.describe("single", 1))
    recording.commit(moment(0))
    real, left = commits.StagedRecord.commit, [failing]

    def commit(self):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(commits.StagedRecord, "commit", commit)
        if failing == 5:
            patch.setattr(committing, "sync_folder", lambda folder: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(StorageError):
            recording.commit_all([moment(epoch) for epoch in range(1, 6)])
    assert [record.epoch for record in read_manifest(path).live] == list(range(1 + failing))
    if failing == 0:
        recording.commit(moment(1))  # nothing was visible: the next commit may be tried
    else:
        with pytest.raises(StorageError, match="open the recording again"):
            recording.commit(moment(1))
    recording.close()
    start = max(failing, 1) + 1
    with RecordingWriter.open(path, killed_writer.describe("single", 1)) as recording:
        recording.commit_all([moment(epoch) for epoch in range(start, 6)])
    assert [record.epoch for record in read_manifest(path).live] == list(range(6))
    assert verify(path, deep=True).clean


def test_ranks_behind_their_threads(tmp_path):
    """Two ranks with threads and queues of their own, one much slower: what the thread drained may not be whole yet."""
    path = tmp_path / "run"
    writers = open_ranks(path, 2)
    threads = [BackgroundWriter(writer) for writer in writers]
    for epoch in range(40):
        for rank, thread in enumerate(threads):
            thread.submit(
                Pending(
                    epoch,
                    10 * epoch,
                    True,
                    lambda epoch=epoch, rank=rank: moment(epoch, mode="ranks", rank=rank, world=2, parts=2),
                    lambda: None,
                )
            )
    threads[0].drain()
    assert writers[0].wait_committed(39, 60.0)
    threads[0].run(writers[0].flush)
    assert threads[0].committed == 40
    with xr.open_zarr(path / "store.zarr", group="metrics/epoch", consolidated=True) as view:
        assert view["epoch"].values.tolist() == list(range(40))
    for thread in threads:
        thread.close()
    check_holds(path, range(40), parts=2, worlds=dict.fromkeys(range(40), 2))
    assert verify(path, deep=True).clean
