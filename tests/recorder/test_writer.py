"""Writing a recording: commits, resuming, rewinding, and what happens when the disk, the caller or a process fails."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given
from hypothesis import strategies as st
from numcodecs import zstd
from recordings import describe, moments

from dynome_recorder.errors import (
    CorruptRecordingError,
    DynomeError,
    FingerprintError,
    InvalidArgumentError,
    RecordingLockedError,
    RecordingNotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from dynome_recorder.storage import bulk, commits, committing, files, layout, publish, writer
from dynome_recorder.storage.format import seal, unseal
from dynome_recorder.storage.lifecycle import acquire_lock
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription

SITES = {"hidden1": 12, "hidden2": 8}
DESCRIPTION = describe(SITES, samples=40)


def all_moments(epochs=5, **options):
    return moments(SITES, samples=40, epochs=epochs, **options)


def check_holds(path, expected):
    """Check that a recording holds exactly these moments as live, in order, bit for bit."""
    manifest = read_manifest(path)
    assert [(r.epoch, r.step, r.parameters) for r in manifest.live] == [
        (m.epoch, m.step, m.parameters) for m in expected
    ]
    for stream, kind, entries in (("probe", "probe", manifest.sites), ("weights", "weights", manifest.weights)):
        rows = [index for _, index in manifest.snapshots(stream)]
        given = [getattr(moment, kind) for moment in expected if getattr(moment, kind) is not None]
        assert len(rows) == len(given)
        for name, entry in entries.items():
            array = manifest.array(entry["path"])
            for row, values in zip(rows, given, strict=True):
                np.testing.assert_array_equal(array[row], values[name])
    metrics = {name: list(values) for name, (_, values) in manifest.epoch_metrics().items()}
    for name in metrics:
        assert metrics[name] == [m.epoch_metrics[name] for m in expected if name in m.epoch_metrics]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_what_is_committed_reads_back(make_recording, dtype):
    path = make_recording(dtype=dtype)
    check_holds(path, all_moments(6, dtype=dtype))
    assert verify(path, deep=True).clean


def test_a_commit_is_there_before_anything_is_published(tmp_path):
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION, publish_interval=1e9) as recording:
        for moment in all_moments():
            recording.commit(moment)
        check_holds(tmp_path / "run", all_moments())
        with xr.open_zarr(tmp_path / "run/store.zarr", group="probe") as probe:
            assert probe.sizes["snapshot"] == 0
        recording.flush()
        with xr.open_zarr(tmp_path / "run/store.zarr", group="probe") as probe:
            assert probe["epoch"].values.tolist() == [0, 1, 2, 3, 4, 5]


def test_an_empty_recording_opens_everywhere(tmp_path):
    RecordingWriter.open(tmp_path / "run", DESCRIPTION).close()
    manifest = read_manifest(tmp_path / "run")
    assert manifest.live == ()
    assert manifest.array("probe/sites/hidden1/activation").shape == (0, 40, 12)
    assert verify(tmp_path / "run", deep=True).clean
    with xr.open_zarr(tmp_path / "run/store.zarr", group="probe/sites/hidden1") as site:
        assert site.sizes["snapshot"] == 0


def test_streams_have_schedules_of_their_own(tmp_path):
    expected = [
        replace(
            moment, probe=moment.probe if number % 2 == 0 else None, weights=moment.weights if number % 3 == 0 else None
        )
        for number, moment in enumerate(all_moments(6))
    ]
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
        for moment in expected:
            recording.commit(moment)
    check_holds(tmp_path / "run", expected)
    manifest = read_manifest(tmp_path / "run")
    assert [index for _, index in manifest.snapshots("probe")] == [0, 1, 2, 3]
    assert [record.epoch for record, _ in manifest.snapshots("weights")] == [0, 3, 6]


@pytest.mark.parametrize("splits", [(1,), (0, 3), (1, 2, 3, 4, 5)])
def test_a_recording_continues_where_it_stopped(tmp_path, splits):
    expected = all_moments()
    for session, (start, stop) in enumerate(zip((0, *splits), (*splits, None), strict=True)):
        with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
            assert recording.resumed == (session > 0)
            assert recording.last_complete_epoch == (start - 1 if start else None)
            for moment in expected[start:stop]:
                recording.commit(moment)
    check_holds(tmp_path / "run", expected)
    assert verify(tmp_path / "run", deep=True).clean


def test_recording_the_same_again_writes_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        clock = iter(range(1_700_000_000, 1_700_001_000)).__next__
        with RecordingWriter.open(tmp_path / name, DESCRIPTION, run_id="0" * 32, clock=clock) as recording:
            for moment in all_moments():
                recording.commit(moment)
    trees = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("one", "other")
    ]
    assert trees[0] == trees[1]


def test_a_rewind_supersedes_and_deletes_nothing(tmp_path):
    expected = all_moments(6)
    path = tmp_path / "run"
    with RecordingWriter.open(path, DESCRIPTION) as recording:
        for moment in expected:
            recording.commit(moment)
        before = {p for p in path.rglob("c.*") if "sites" in str(p)}
        recording.rewind(3)
        assert recording.last_complete_epoch == 3
        assert recording.last.epoch == 3
        recording.rewind(3)  # nothing left to supersede
        for moment in all_moments(6, seed=1)[4:]:
            recording.commit(moment)
    check_holds(path, [*expected[:4], *all_moments(6, seed=1)[4:]])
    assert before <= set(path.rglob("c.*"))
    with xr.open_zarr(path / "store.zarr", group="probe") as probe:
        assert probe["epoch"].values.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6]
        assert probe["status"].values.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    with xr.open_zarr(path / "store.zarr", group="metrics/step") as step:
        assert step["status"].values.tolist() == [0] * 9 + [1] * 9 + [0] * 9
        assert step["step"].values.tolist() == [*range(1, 19), *range(10, 19)]
    assert len([r for r in read_manifest(path).records if r.kind == "rewind"]) == 1
    assert verify(path, deep=True).clean
    with RecordingWriter.open(path, DESCRIPTION) as recording:
        assert recording.last_complete_epoch == 6
        with pytest.raises(
            InvalidArgumentError, match="epoch 9 is not committed; committed epochs: 0, 1, 2, 3, 4, 5, 6"
        ):
            recording.rewind(9)


def test_moments_within_an_epoch_are_no_place_to_resume(tmp_path):
    first, second = all_moments(1)
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
        recording.commit(first)
        recording.commit(replace(second, epoch=0, epoch_complete=False, step=2))
        assert recording.last_complete_epoch == 0
        recording.rewind(0)
        assert recording.last.epoch_complete
    assert len(read_manifest(tmp_path / "run").live) == 1


def test_health_and_nan_metrics_are_kept(tmp_path):
    first = replace(
        all_moments(0)[0],
        health={"hidden1": {"nan": 2, "inf": 0}, "hidden2": {"inf": 0}},
        epoch_metrics={"a": float("nan"), "b": float("inf")},
        step_metrics={"loss": ([1, 2], [float("nan"), -float("inf")]), "none": ([], [])},
    )
    second = replace(all_moments(1)[1], step_metrics={"lr": ([2, 3], [0.1, 0.2])}, epoch_metrics={"late": 1.0})
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
        assert recording.commit(first).health == {"hidden1": {"nan": 2}}
        recording.commit(second)
    manifest = read_manifest(tmp_path / "run")
    assert np.isnan(manifest.epoch_metrics()["a"][1][0])
    assert manifest.epoch_metrics()["b"][1][0] == np.inf
    steps, values = manifest.step_metrics()["loss"]
    assert steps.tolist() == [1, 2]
    assert np.isnan(values[0])
    assert values[1] == -np.inf
    assert "none" not in manifest.step_metrics()
    with xr.open_zarr(tmp_path / "run/store.zarr", group="probe") as probe:
        assert probe["health"].values.tolist() == [[[2, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
        assert probe["health"].attrs["sites"] == ["hidden1", "hidden2"]
    with xr.open_zarr(tmp_path / "run/store.zarr", group="metrics/epoch") as epoch:
        np.testing.assert_array_equal(epoch["late"], [np.nan, 1.0])
        np.testing.assert_array_equal(epoch["a"], [np.nan, np.nan])
    with xr.open_zarr(tmp_path / "run/store.zarr", group="metrics/step") as step:
        np.testing.assert_array_equal(step["lr"], [np.nan, np.nan, 0.1, 0.2])


def test_metrics_may_be_called_anything(tmp_path):
    names = ["step", "status", "epoch", "val/loss", "zarr.json", "Ünï", "a b"]
    moment = replace(
        all_moments(1)[1], epoch_metrics=dict.fromkeys(names, 1.0), step_metrics={n: ([1], [2.0]) for n in names}
    )
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
        recording.commit(moment)
    manifest = read_manifest(tmp_path / "run")
    assert set(manifest.epoch_metrics()) == set(manifest.step_metrics()) == set(names)
    for group in ("metrics/epoch", "metrics/step"):
        with xr.open_zarr(tmp_path / "run/store.zarr", group=group) as view:
            assert {v.attrs["name"] for v in view.values() if "name" in v.attrs} == set(names)
    assert verify(tmp_path / "run", deep=True).clean


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: replace(m, probe={"hidden1": m.probe["hidden1"]}), "each of its sites once; differs in hidden2"),
        (lambda m: replace(m, probe={**m.probe, "x": m.probe["hidden1"]}), "differs in x"),
        (lambda m: replace(m, weights={}), "each of its weights once"),
        (
            lambda m: replace(m, probe={**m.probe, "hidden1": np.zeros((40, 11), np.float32)}),
            r"hidden1 must be float32",
        ),
        (lambda m: replace(m, probe={**m.probe, "hidden1": np.zeros((40, 12))}), "got float64"),
        (lambda m: replace(m, health={"other": {"nan": 1}}), "health of 'other' is unknown"),
        (lambda m: replace(m, health={"hidden1": {"odd": 1}}), "health of 'odd' is unknown"),
        (lambda m: replace(m, step_metrics={"loss": ([1, 2], [0.5])}), "2 steps but 1 values"),
        (lambda m: replace(m, epoch_metrics={"": 1.0}), "must not be empty"),
        (lambda m: replace(m, step_metrics={"n" * 300: ([1], [0.5])}), "too long"),
    ],
)
def test_a_moment_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, match):
    first, second = all_moments(1)
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as recording:
        recording.commit(first)
        with pytest.raises(InvalidArgumentError, match=match):
            recording.commit(change(second))
        recording.commit(second)
    check_holds(tmp_path / "run", [first, second])
    assert verify(tmp_path / "run", deep=True).clean


def test_weights_that_are_not_recorded_are_refused(tmp_path):
    moment = all_moments(0)[0]
    with RecordingWriter.open(tmp_path / "run", replace(DESCRIPTION, weights={})) as recording:
        with pytest.raises(InvalidArgumentError, match="differs in"):
            recording.commit(moment)
        with pytest.raises(InvalidArgumentError, match="has no weights to record"):
            recording.commit(replace(moment, weights={}))
        recording.commit(replace(moment, weights=None))


def test_a_closed_recording_takes_nothing_more(tmp_path):
    recording = RecordingWriter.open(tmp_path / "run", DESCRIPTION)
    recording.close()
    recording.close()
    for call in (lambda: recording.commit(all_moments(0)[0]), recording.flush, lambda: recording.rewind(0)):
        with pytest.raises(InvalidArgumentError, match="closed"):
            call()


# ---- what cannot be continued


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (describe({"hidden1": 12}, samples=40), "sites was"),
        (describe({"hidden2": 8, "hidden1": 12}, samples=40), "sites was"),
        (describe({"hidden1": 12, "hidden2": 9}, samples=40), "shape of hidden2 was"),
        (describe(SITES, samples=40, dtype="float16"), "dtype of hidden1 was 'float32' and is 'float16' now"),
        (describe(SITES, samples=40, seed=1), "probe hash was"),
        (
            replace(
                DESCRIPTION,
                sites={
                    name: replace(spec, attributes={"reduction": "max"}) for name, spec in DESCRIPTION.sites.items()
                },
            ),
            "reduction of hidden1 was None and is 'max' now",
        ),
        (describe(SITES, samples=40, weights=False), "weights was"),
        (replace(DESCRIPTION, model={"parameters": []}), "the model's parameters differ"),
        (replace(DESCRIPTION, probe={**DESCRIPTION.probe, "new": 1}), "probe new was None and is 1 now"),
    ],
)
def test_a_recording_of_something_else_is_not_continued(make_recording, other, match):
    path = make_recording(epochs=1)
    with pytest.raises(FingerprintError, match=match):
        RecordingWriter.open(path, other)
    check_holds(path, all_moments(1))
    RecordingWriter.open(path, replace(DESCRIPTION, hyperparameters={}, schedules={}, optimizer=None)).close()


def test_only_one_process_records(tmp_path):
    with (
        RecordingWriter.open(tmp_path / "run", DESCRIPTION),
        pytest.raises(RecordingLockedError, match="another recorder writes here; leave its `with` block"),
    ):
        RecordingWriter.open(tmp_path / "run", DESCRIPTION)
    RecordingWriter.open(tmp_path / "run", DESCRIPTION).close()


def test_another_thread_may_close_a_recording(tmp_path):
    recording = RecordingWriter.open(tmp_path / "run", DESCRIPTION)
    thread = threading.Thread(target=recording.close)
    thread.start()
    thread.join()
    RecordingWriter.open(tmp_path / "run", DESCRIPTION).close()
    del recording  # alive until here: what is collected gives its lock back anyway


FORKING = """
import os, sys, time
from dynome_recorder.storage.lifecycle import acquire_lock
from pathlib import Path

lock = acquire_lock(Path(sys.argv[1]))
if os.fork() == 0:
    if sys.argv[2] == "outlive":
        time.sleep(30)
    sys.exit()
if sys.argv[2] == "leave":
    os.wait()
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["leave", "outlive"])
def test_forked_children_neither_give_the_lock_away_nor_keep_it(tmp_path, what):
    command = [sys.executable, "-c", FORKING, str(tmp_path), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            if what == "leave":  # a worker that ended is no end of the recorder
                with pytest.raises(RecordingLockedError):
                    acquire_lock(tmp_path)
            process.kill()  # the recorder alone: data loading workers may live on for a while
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            acquire_lock(tmp_path).release()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_working_folder_may_change_while_recording(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = all_moments(2)
    with RecordingWriter.open("run", DESCRIPTION) as recording:
        monkeypatch.chdir(tmp_path / "elsewhere")
        for moment in expected:
            recording.commit(moment)
    check_holds(tmp_path / "run", expected)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_existing_recording_may_be_refused(make_recording):
    with pytest.raises(InvalidArgumentError, match="holds a recording already"):
        RecordingWriter.open(make_recording(epochs=0), DESCRIPTION, on_existing="error")


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"not empty and not a recording \(holds notes\.txt\)"):
        RecordingWriter.open(tmp_path, DESCRIPTION)
    with pytest.raises(InvalidArgumentError, match="is a file"):
        RecordingWriter.open(tmp_path / "notes.txt", DESCRIPTION)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_recording_without_its_description_is_not_overwritten(make_recording):
    path = make_recording(epochs=2)
    (path / "run.json").unlink()
    for _ in range(2):
        with pytest.raises(CorruptRecordingError, match=r"run\.json: missing, but there are commits"):
            RecordingWriter.open(path, DESCRIPTION)
        for folder in path.glob("commits/*"):
            folder.unlink()  # the second time only the published store knows


@pytest.mark.parametrize("damage", ["record", "chunk", "version", "tail"])
def test_a_damaged_recording_is_not_continued(make_recording, damage):
    path = make_recording(epochs=3)
    match, error = "missing", CorruptRecordingError
    if damage == "record":
        (path / "commits/00000001.json").unlink()
    elif damage == "tail":
        (path / "commits/00000003.json").unlink()
        match = "record 3 is missing, the store was published after record 3"
    elif damage == "chunk":
        (path / "store.zarr/probe/sites/hidden1/activation/c.1.0.0").unlink()
    else:
        run = unseal((path / "run.json").read_bytes(), where="x", indent=True)
        (path / "run.json").write_bytes(
            seal({**run, "format": {"name": "dynome-recording", "version": "9.0"}}, indent=True)
        )
        match, error = "update dynome", UnsupportedVersionError
    for call in (lambda: RecordingWriter.open(path, DESCRIPTION), lambda: read_manifest(path)):
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.mkdir(), "holds no run.json"),
        (lambda path: path.touch(), "is not a folder"),
        (lambda path: None, "does not exist"),
    ],
)
def test_a_path_that_is_no_recording(tmp_path, make, match):
    make(tmp_path / "x")
    with pytest.raises(RecordingNotFoundError, match=match) as caught:
        read_manifest(tmp_path / "x")
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)


def test_a_run_description_that_says_nothing_is_corrupt(tmp_path):
    (tmp_path / "run.json").write_bytes(
        seal({"format": {"name": "dynome-recording", "version": "1.0"}, "run_id": "x"}, indent=True)
    )
    with pytest.raises(CorruptRecordingError, match="not a description of a recording"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("hostile", ["../../../../etc/passwd", "probe/sites/../activation", "/etc/passwd"])
def test_paths_that_lead_out_of_the_recording_are_refused(make_recording, hostile):
    path = make_recording(epochs=0)
    run = unseal((path / "run.json").read_bytes(), where="x", indent=True)
    record = unseal((path / "commits/00000000.json").read_bytes(), where="x")
    (path / "commits/00000000.json").write_bytes(
        seal({**record, "files": {**record["files"], hostile + "/..": [1, "0"]}})
    )
    with pytest.raises(CorruptRecordingError, match="outside the store"):
        read_manifest(path, check=False)
    run["fingerprint"]["sites"]["hidden1"]["path"] = hostile
    (path / "run.json").write_bytes(seal(run, indent=True))
    with pytest.raises(CorruptRecordingError, match="not a description of a recording"):
        read_manifest(path)


def test_a_newer_minor_version_is_read(make_recording):
    path = make_recording(epochs=2)
    run = unseal((path / "run.json").read_bytes(), where="x", indent=True)
    run["format"]["version"] = "1.3"
    (path / "run.json").write_bytes(seal({**run, "unheard_of": {"x": 1}}, indent=True))
    check_holds(path, all_moments(2))


# ---- interrupted starts


@pytest.mark.parametrize("point", range(6))
def test_a_start_that_was_cut_off_starts_again(tmp_path, monkeypatch, point):
    """Fail at the n-th atomic write of the start: the folder is no recording yet, and the next start makes it one."""
    real, calls = files.write_atomically, iter(range(10**6))

    def failing(path, data, *, sync):
        if next(calls) >= point * 6:
            raise KeyboardInterrupt
        real(path, data, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_atomically", failing)
        patch.setattr(publish, "write_atomically", failing)
        with pytest.raises(KeyboardInterrupt):
            RecordingWriter.open(tmp_path / "run", DESCRIPTION)
    with pytest.raises(RecordingNotFoundError):
        read_manifest(tmp_path / "run")
    with RecordingWriter.open(tmp_path / "run", describe({"hidden1": 12, "hidden2": 8}, samples=40)) as recording:
        assert not recording.resumed
        recording.commit(all_moments(0)[0])
    assert verify(tmp_path / "run", deep=True).clean


# ---- failing disks


def failing_disk(monkeypatch, *, allowed, code=errno.ENOSPC):
    """Let the next `allowed` file writes pass and make all later ones fail, as a disk that fills up does."""
    real_file, real_pieces = files.write_file, files.write_pieces
    left, lock = [allowed], threading.Lock()

    def take(path, data):
        with lock:
            left[0] -= 1
            if left[0] < 0:
                path.write_bytes(data[: len(data) // 2])  # a full disk leaves a part
                raise OSError(code, os.strerror(code), str(path))

    def write_file(path, data, *, sync):
        take(path, data)
        real_file(path, data, sync=sync)

    def write_pieces(path, pieces, *, written):
        pieces = list(pieces)
        take(path, b"".join(pieces))
        real_pieces(path, pieces, written=written)

    monkeypatch.setattr(files, "write_file", write_file)
    monkeypatch.setattr(commits, "write_file", write_file)
    monkeypatch.setattr(bulk, "write_pieces", write_pieces)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("allowed", [0, 1, 5, 8])  # 8 chunks, then the record
def test_a_disk_that_fails_in_mid_run_loses_only_what_was_not_committed(tmp_path, monkeypatch, allowed, code):
    expected = all_moments(3)
    path = tmp_path / "run"
    with RecordingWriter.open(path, DESCRIPTION, publish_interval=1e9) as recording:
        recording.commit(expected[0])
        with monkeypatch.context() as patch:
            failing_disk(patch, allowed=allowed, code=code)
            with pytest.raises(StorageError, match=f"run: cannot be written \\({os.strerror(code)}\\)") as caught:
                recording.commit(expected[1])
            assert isinstance(caught.value, OSError)
            assert "\n" not in str(caught.value)
        check_holds(path, expected[:1])
        recording.commit(expected[1])  # the disk has room again
    check_holds(path, expected[:2])
    assert verify(path, deep=True).clean


def test_a_disk_that_stays_full_leaves_a_valid_recording(tmp_path, monkeypatch):
    expected = all_moments(3)
    path = tmp_path / "run"
    with (
        pytest.raises(StorageError),
        monkeypatch.context() as patch,
        RecordingWriter.open(path, DESCRIPTION) as recording,
    ):
        recording.commit(expected[0])
        recording.commit(expected[1])
        failing_disk(patch, allowed=3)
        recording.commit(expected[2])
    check_holds(path, expected[:2])
    assert verify(path, deep=True).valid
    with RecordingWriter.open(path, DESCRIPTION) as recording:
        recording.commit(expected[2])
    check_holds(path, expected[:3])
    assert verify(path, deep=True).clean


def test_publishing_that_fails_does_not_undo_a_commit(tmp_path, monkeypatch, caplog):
    expected = all_moments(2)
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION, publish_interval=0) as recording:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            failing_disk(patch, allowed=9)
            recording.commit(expected[0])
            assert "committed, but not published yet" in caplog.text
            with pytest.raises(StorageError):
                recording.flush()
        check_holds(tmp_path / "run", expected[:1])
        recording.commit(expected[1])
    assert verify(tmp_path / "run", deep=True).clean


def test_a_sync_that_fails_behind_the_rename_stops_the_writer(tmp_path, monkeypatch):
    """Nobody can say whether the record survives, so the writer must not write another in its place."""
    expected = all_moments(2)
    path = tmp_path / "run"
    recording = RecordingWriter.open(path, DESCRIPTION)
    recording.commit(expected[0])

    def failing(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(committing, "sync_folder", failing)
        with pytest.raises(StorageError):
            recording.commit(expected[1])
    with pytest.raises(StorageError, match="open the recording again"):
        recording.commit(expected[2])
    recording.close()
    check_holds(path, expected[:2])
    with RecordingWriter.open(path, DESCRIPTION) as recording:
        recording.commit(expected[2])
    check_holds(path, expected)
    assert verify(path, deep=True).clean


@pytest.mark.parametrize("where", ["append", "views"])
def test_an_interrupt_during_a_commit_never_overwrites_it(tmp_path, monkeypatch, where):
    expected = all_moments(2)
    path = tmp_path / "run"
    recording = RecordingWriter.open(path, DESCRIPTION)
    recording.commit(expected[0])

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "views":
            patch.setattr(recording._showing._views, "append", interrupt)  # behind the rename
        else:
            patch.setattr(commits.StagedRecord, "commit", interrupt)  # before it
        with pytest.raises(KeyboardInterrupt):
            recording.commit(expected[1])
    if where == "views":
        with pytest.raises(StorageError):
            recording.commit(expected[2])
    else:
        recording.commit(expected[1])
    recording.close()
    check_holds(path, expected[:2])
    with RecordingWriter.open(path, DESCRIPTION):
        pass
    assert verify(path, deep=True).clean


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write")
def test_a_folder_that_cannot_be_written_is_one_clear_line():
    with pytest.raises(StorageError, match=r"^/proc/self/recording: cannot be written") as caught:
        RecordingWriter.open("/proc/self/recording", DESCRIPTION)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing_disk(patch, allowed=0)
        with pytest.raises(StorageError, match="No space left on device"):
            RecordingWriter.open(tmp_path / "run", DESCRIPTION)
    with pytest.raises(RecordingNotFoundError):
        read_manifest(tmp_path / "run")
    RecordingWriter.open(tmp_path / "run", DESCRIPTION).close()


def test_a_real_full_disk(tmp_path):
    """A small tmpfs fills up in mid-run; without the right to mount one, see the injected errors above."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        assert not list(mount.iterdir())
        return
    try:
        path = mount / "run"
        rng = np.random.default_rng(0)
        committed = []
        with pytest.raises(StorageError, match="No space left"), RecordingWriter.open(path, DESCRIPTION) as recording:
            for epoch in range(100):
                noise = {site: rng.normal(size=(40, units)).astype(np.float32) for site, units in SITES.items()}
                moment = replace(all_moments(0)[0], epoch=epoch, probe=noise)
                recording.commit(moment)
                committed.append(moment)
        assert 3 < len(committed) < 100
        check_holds(path, committed)
        assert verify(path, deep=True).valid
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_real_read_only_folder(tmp_path):
    """The file system turns read-only in mid-run; without the right to mount one, see the injected EROFS above."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        assert not list(mount.iterdir())
        return
    expected = all_moments(2)
    try:
        recording = RecordingWriter.open(mount / "run", DESCRIPTION)
        recording.commit(expected[0])
        recording._lock.release()  # its descriptor would keep the file system from turning read-only
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(StorageError, match="Read-only file system"):
            recording.commit(expected[1])
        with pytest.raises(StorageError, match="Read-only file system"):
            recording.close()
        check_holds(mount / "run", expected[:1])
        assert verify(mount / "run", deep=True).valid
        for path in (mount / "run", mount / "new"):
            with pytest.raises(StorageError, match="Read-only file system"):
                RecordingWriter.open(path, DESCRIPTION)
        with pytest.raises(DynomeError):
            verify(mount / "run", repair=True)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# ---- durability and size


@given(st.integers(1, 4 * layout.ZSTD_BLOCK), st.integers(0, 2**32 - 1))
@example(layout.ZSTD_BLOCK, 0)
@example(layout.ZSTD_BLOCK + 1, 0)
@example(3 * layout.ZSTD_BLOCK, 0)
def test_what_is_stored_uncompressed_is_a_frame_that_zstd_reads(length, seed):
    data = np.random.default_rng(seed).integers(0, 256, length).astype(np.uint8)
    stored = bytes(layout.store_uncompressed(data))
    frame, checksum = stored[:-4], int.from_bytes(stored[-4:], "little")
    assert checksum == google_crc32c.value(frame)
    assert zstd.decompress(frame) == data.tobytes()
    found = np.zeros_like(data)
    layout.decompress(frame, found)
    np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize(("values", "gain"), [("dense", 1.0), ("relu", 1.7), ("constant", 1000.0), ("bfloat16", 1.2)])
def test_only_what_gains_is_compressed(tmp_path, values, gain):
    """And whatever was chosen reads back, through plain zarr too."""
    dense = np.random.default_rng(0).normal(size=(600, 1500)).astype(np.float32)
    array = {
        "dense": dense,
        "relu": np.maximum(dense, 0),
        "constant": np.ones_like(dense),
        "bfloat16": (dense.view(np.uint32) >> 16).astype(np.uint16),
    }[values]
    dtype = "bfloat16" if values == "bfloat16" else "float32"
    description = RunDescription(sites={"a": ArraySpec((600, 1500), dtype, ("sample", "unit"))})
    with RecordingWriter.open(tmp_path / "run", description) as recording:
        record = recording.commit(Moment(epoch=0, step=0, probe={"a": array}))
    ((size, _),) = record.files.values()
    assert gain * 0.999 < array.nbytes / size < (10 * gain if gain > 1 else 1.001)
    np.testing.assert_array_equal(read_manifest(tmp_path / "run").array("probe/sites/a/activation")[0], array)
    with xr.open_zarr(tmp_path / "run/store.zarr", group="probe/sites/a") as site:
        np.testing.assert_array_equal(site["activation"].values[0], array)
    assert verify(tmp_path / "run", deep=True).clean


@pytest.mark.usefixtures("real_sync")
def test_everything_is_synced_before_the_record_is_renamed(tmp_path, monkeypatch):
    """Against a power cut: files, their names and the record's content first, then its name, then its folder."""
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real_fsync(descriptor)

    def rename(self, target):
        events.append(("rename", str(target)))
        return real_replace(self, target)

    path = tmp_path / "run"
    with RecordingWriter.open(path, DESCRIPTION, publish_interval=1e9) as recording:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", rename)
        record = recording.commit(all_moments(0)[0])
        commit = events.index(("rename", str(path / "commits/00000000.json")))
        for name in record.files:
            file = path / "store.zarr" / name
            assert max(events.index(("sync", str(file))), events.index(("sync", str(file.parent)))) < commit
        assert events.index(("sync", str(path / "commits/00000000.json.partial"))) < commit
        assert events[commit + 1] == ("sync", str(path / "commits"))
        assert len(events) == 2 * len(record.files) + 3


def test_a_thousand_small_commits_stay_cheap(tmp_path):
    """The log folds into segments, and the last commits cost no more than the first ones."""
    description = RunDescription(sites={"a": describe({"a": 4}, samples=3).sites["a"]})
    times = []
    with RecordingWriter.open(tmp_path / "run", description, publish_interval=1e9) as recording:
        for number in range(1000):
            values = np.full((3, 4), number, np.float32)
            started = time.perf_counter()
            recording.commit(
                Moment(epoch=number, step=number, probe={"a": values}, step_metrics={"loss": ([number], [0.5])})
            )
            times.append(time.perf_counter() - started)
    assert len(list((tmp_path / "run/commits").iterdir())) == 1000 // 64 + 1000 % 64
    assert np.median(times[-200:]) < 3 * np.median(times[:200]) + 0.001
    started = time.perf_counter()
    manifest = read_manifest(tmp_path / "run")
    assert time.perf_counter() - started < 5
    assert len(manifest.live) == 1000
    assert manifest.array("probe/sites/a/activation")[777].tolist() == [[777.0] * 4] * 3
    assert verify(tmp_path / "run", deep=True).clean


def test_importing_the_package_loads_neither_torch_nor_zarr_nor_xarray():
    code = (
        "import sys, dynome_recorder, dynome_recorder.storage.writer, dynome_recorder.storage.manifest;"
        "import dynome_recorder.storage.verify, dynome_recorder.info, dynome_recorder.cli;"
        "print([name for name in ('torch', 'zarr', 'xarray', 'dask', 'scipy', 'numcodecs', 'dynome_analysis') "
        "if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_thread_that_fails_before_it_writes_leaves_nobody_waiting(tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    first, second = moments({"a": 30}, samples=40, epochs=2)[:2]
    with RecordingWriter.open(tmp_path / "run", describe({"a": 30}, samples=40)) as recording:
        with monkeypatch.context() as broken:
            broken.setattr(bulk.BulkFiles, "_write", fail)
            with pytest.raises(MemoryError):
                recording.commit(first)
        recording.commit(first)
        recording.commit(second)
    assert verify(tmp_path / "run", deep=True).clean
