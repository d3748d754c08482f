"""`dynome tail`: every commit once, in order, and what became of the recorder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import describe, moments

from dynome_recorder.cli import main
from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, RecordingNotFoundError
from dynome_recorder.shield import DEGRADED_FILE
from dynome_recorder.storage.commits import SEGMENT_LENGTH, fold_segments, read_log, write_record
from dynome_recorder.storage.following import LogFollower
from dynome_recorder.storage.format import seal
from dynome_recorder.storage.records import CommitRecord, chain_link
from dynome_recorder.storage.writer import Moment, RecordingWriter
from dynome_recorder.tail import event_line, tail

SITES = {"hidden": 3}
DESCRIPTION = describe(SITES, samples=4, weights=False)


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def light(epoch: int) -> Moment:
    """A moment that writes no array, so that long logs are cheap."""
    return Moment(epoch=epoch, step=epoch, step_metrics={"loss": ([epoch], [1 / (epoch + 1)])})


def no_sleep(seconds: float) -> None:
    pytest.fail("it waits although the recorder is gone")


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), rewinds=st.booleans())
def test_a_follower_reads_every_record_once(tmp_path_factory, sizes, rewinds):
    """Whatever was folded into segments between two looks."""
    folder = tmp_path_factory.mktemp("log")
    with RecordingWriter.open(folder / "run", DESCRIPTION, publish_interval=1e9) as writer:
        follower, seen, epoch = LogFollower(folder / "run"), [], 0
        for size in sizes:
            for _ in range(size):
                writer.commit(light(epoch))
                epoch += 1
            if rewinds and epoch:
                writer.rewind(epoch - 1)
            seen += follower.read()
    assert seen == follower.records == list(read_log(folder / "run" / "commits"))


def test_a_follower_survives_the_fold(tmp_path):
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as writer:
        follower = LogFollower(tmp_path / "run")
        writer.commit(light(0))
        assert [record.epoch for record in follower.read()] == [0]
        for epoch in range(1, SEGMENT_LENGTH + 3):
            writer.commit(light(epoch))
        assert not (tmp_path / "run" / "commits" / "00000001.json").exists()
        assert [record.epoch for record in follower.read()] == list(range(1, SEGMENT_LENGTH + 3))
        assert follower.read() == []


def test_a_follower_notices_damage(tmp_path):
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as writer:
        follower = LogFollower(tmp_path / "run")
        writer.commit(light(0))
        follower.read()
        writer.commit(light(1))
        path = tmp_path / "run" / "commits" / "00000001.json"
        good = path.read_bytes()
        path.write_bytes(good.replace(b'"step":1', b'"step":7'))
        with pytest.raises(CorruptRecordingError, match=r"00000001\.json"):
            follower.read()
        path.write_bytes((path.parent / "00000000.json").read_bytes())
        with pytest.raises(CorruptRecordingError, match="holds record 0 of rank 0 in place of 1 of 0"):
            follower.read()
        path.write_bytes(good)


def test_a_moment_of_several_ranks_is_there_when_all_have_committed(tmp_path):
    """Across the fold too, where each rank has a segment of its own."""
    commits, count = tmp_path / "commits", SEGMENT_LENGTH + 4
    commits.mkdir()
    follower, seen, last = LogFollower(tmp_path), [], [None, None]

    def commit(rank: int, epoch: int) -> None:
        record = CommitRecord(
            sequence=epoch,
            previous=chain_link(last[rank]),
            kind="part" if rank else "moment",
            time=0.0,
            rank=rank,
            epoch=epoch,
            step=epoch,
            world=1 if rank else 2,
            health={"hidden": {"nan": 1}},
        )
        last[rank] = write_record(commits, record)

    for epoch in range(count):
        commit(0, epoch)
        if epoch % 5 == 0:
            seen += follower.read()
            assert all(record.epoch < epoch for record in seen)
        commit(1, epoch)
        if epoch == SEGMENT_LENGTH + 1:
            for rank in (0, 1):
                fold_segments(commits, length=epoch + 1, rank=rank)
        if epoch % 7 == 0 or epoch == count - 1:
            seen += follower.read()
    assert [record.epoch for record in seen] == list(range(count))
    assert all(record.health == {"hidden": {"nan": 2}} for record in seen)
    assert follower.records == list(read_log(commits))


def test_what_is_there_and_the_end(make_recording):
    path = make_recording(epochs=3)
    first, *commits, end = tail(path, sleep=no_sleep)
    assert (first["event"], first["recorder"], first["commits"]) == ("recording", "gone", 4)
    assert [event["epoch"] for event in commits] == [0, 1, 2, 3]
    assert commits[2]["snapshots"] == {"probe": 2, "weights": 2}
    assert commits[2]["step_metrics"]["loss"]["count"] == 3
    assert commits[2]["epoch_metrics"]["val_loss"] == pytest.approx(0.9, abs=0.1)
    assert commits[2]["bytes"] == sum(size for size, _ in read_log(path / "commits")[2].files.values()) > 0
    assert end == {
        "event": "end",
        "recorder": "ended",
        "commits": 4,
        "epoch": 3,
        "step": 9,
        "epoch_complete": True,
    }


@pytest.mark.parametrize(("lines", "epochs"), [(0, []), (2, [2, 3]), (99, [0, 1, 2, 3])])
def test_lines(make_recording, lines, epochs):
    events = list(tail(make_recording(epochs=3), lines=lines, follow=False))
    assert [event["epoch"] for event in events if event["event"] == "commit"] == epochs


def test_a_live_recording_is_followed(tmp_path):
    """Commits, a rewind, health, a recorder that stops recording and one that ends: each is told once, in order."""
    path = tmp_path / "run"
    writer = RecordingWriter.open(path, DESCRIPTION)
    ready = moments(SITES, samples=4, epochs=3, weights=False)
    bad = replace(ready[2], health={"hidden": {"nan": 3}})
    note = seal({"epoch": 2, "step": 6, "time": 0.0, "reason": "the disk is full."}, indent=True)
    todo = [
        lambda: writer.commit(ready[0]),
        lambda: (writer.commit(ready[1]), writer.commit(bad)),
        lambda: None,
        lambda: writer.rewind(1),
        lambda: (path / DEGRADED_FILE).write_bytes(note),
        writer.close,
    ]
    events = list(tail(path, sleep=lambda seconds: todo.pop(0)()))
    assert [event["event"] for event in events] == [
        "recording",
        "commit",
        "commit",
        "commit",
        "rewind",
        "degraded",
        "end",
    ]
    assert events[0]["recorder"] == "at work"
    assert events[3]["health"] == {"hidden": {"nan": 3}}
    assert events[4]["epoch"] == 1
    lines = "\n".join(map(event_line, events))
    for text in (
        "run: 0 commits, recorder at work",
        "epoch 2, step 6  loss=",
        "! hidden: 3 nan",
        "went back to the end of epoch 1",
        "recording stopped, training goes on: the disk is full.",
        "recorder ended; last commit at epoch 2, step 6",
    ):
        assert text in lines


def test_a_step_inside_an_epoch_is_named_so(tmp_path):
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as writer:
        writer.commit(light(0))
        writer.commit(Moment(epoch=0, step=5, epoch_complete=False))
    lines = [event_line(event) for event in tail(tmp_path / "run")]
    assert lines[2].endswith("in epoch 1, step 5")


def test_it_waits_for_a_recording(tmp_path, make_recording):
    todo = [lambda: (tmp_path / "run").mkdir(), lambda: make_recording(tmp_path / "run", epochs=1)]
    events = list(tail(tmp_path / "run", wait=True, sleep=lambda seconds: todo.pop(0)()))
    assert [event["event"] for event in events] == ["recording", "commit", "commit", "end"]


def test_without_a_recording(tmp_path):
    with pytest.raises(RecordingNotFoundError, match="does not exist"):
        list(tail(tmp_path / "run"))
    result = call("tail", tmp_path / "run", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "RecordingNotFoundError"


@pytest.mark.parametrize(("options", "text"), [({"interval": 0}, "interval"), ({"lines": -1}, "lines")])
def test_wrong_arguments(make_recording, options, text):
    with pytest.raises(InvalidArgumentError, match=text):
        list(tail(make_recording(), **options))


def test_json_is_one_object_per_line(make_recording):
    result = call("tail", make_recording(epochs=2), "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()] == ["recording", *["commit"] * 3, "end"]


def test_not_a_number_is_null(tmp_path):
    with RecordingWriter.open(tmp_path / "run", DESCRIPTION) as writer:
        writer.commit(Moment(epoch=0, step=0, epoch_metrics={"val_loss": float("nan")}))
    line = call("tail", tmp_path / "run", "--json").stdout.splitlines()[1]
    assert json.loads(line)["epoch_metrics"] == {"val_loss": None}
    assert "val_loss=nan" in call("tail", tmp_path / "run").stdout


def test_a_reader_that_has_seen_enough_ends_it_quietly(make_recording):
    path = make_recording(epochs=5)
    command = f"{sys.executable} -m dynome_recorder tail {path} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(path))


@pytest.fixture
def recording_process(tmp_path):
    """A process that records until it is killed."""
    script = Path(__file__).parents[1] / "killed_writer.py"
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), "1"], stdout=subprocess.DEVNULL)
    yield process, tmp_path / "run"
    process.kill()
    process.wait()


def follow(path, *options):
    command = [sys.executable, "-m", "dynome_recorder", "tail", path, "--wait", "--interval", "0.05", *options]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_recorder_is_told_and_interrupt_ends_quietly(recording_process):
    recorder, path = recording_process
    interrupted, watching = follow(path), follow(path, "--json")
    assert interrupted.stdout is not None and watching.stdout is not None
    for _ in range(20):
        assert interrupted.stdout.readline()
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.communicate(timeout=20)[1] == ""
    assert interrupted.returncode == 0
    time.sleep(0.3)
    os.kill(recorder.pid, signal.SIGKILL)
    out, errors = watching.communicate(timeout=20)
    assert (watching.returncode, errors) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    epochs = [event["epoch"] for event in events if event["event"] == "commit"]
    assert epochs == list(range(epochs[0], len(epochs) + epochs[0]))
    assert events[-1]["event"] == "end"
    assert events[-1]["epoch"] == epochs[-1]


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from recordings import describe
from dynome_recorder.storage.writer import Moment, RecordingWriter
writer = RecordingWriter.open({path!r}, describe({{"hidden": 3}}, samples=4, weights=False), publish_interval=1e9)
writer.commit(Moment(epoch=0, step=0))
os.kill(os.getpid(), 9)
"""


def test_a_recorder_that_was_killed_is_told_from_one_that_ended(tmp_path):
    """By what it left unpublished."""
    path = str(tmp_path / "run")
    code = KILLED.format(tests=str(Path(__file__).parents[1]), path=path)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    *_, end = tail(path, sleep=no_sleep)
    assert end["recorder"] == "killed"
    assert event_line(end).endswith("last commit at epoch 0, step 0; call the training script again to continue")
    RecordingWriter.open(path, DESCRIPTION).close()
    *_, end = tail(path, sleep=no_sleep)
    assert end["recorder"] == "ended"
