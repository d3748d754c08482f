"""The writer thread: order, waiting, and every way in which it, its caller or the process can end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_threads import raise_in, untraced
from recordings import describe, moments

from dynome_recorder import background
from dynome_recorder.background import BackgroundWriter, Pending
from dynome_recorder.errors import InvalidArgumentError, StorageError
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import Moment, RecordingWriter

PATIENCE = 20.0
"""Seconds after which something that must end is taken for a deadlock."""


class FakeWriter:
    """Takes moments as a RecordingWriter does; can be slow, can be stopped, can fail."""

    path = Path("run")
    cpu_seconds = 0.0

    def __init__(self):
        self.epochs, self.closed, self.threads = [], 0, set()
        self.gate = threading.Event()
        self.gate.set()
        self.fail_at = {}
        self.entered = threading.Event()

    @property
    def next_sequence(self):
        return len(self.epochs)

    def commit_all(self, given):
        for moment in given:
            self.threads.add(threading.current_thread().name)
            self.entered.set()
            while not self.gate.wait(0.01):
                pass  # in bytecode, so that an asynchronous exception arrives
            if moment.epoch in self.fail_at:
                raise self.fail_at[moment.epoch]
            self.epochs.append(moment.epoch)

    def close(self):
        self.threads.add(threading.current_thread().name)
        self.closed += 1


class Ledger:
    """Counts how often the buffers of each moment were given back."""

    def __init__(self):
        self.released = {}

    def pending(self, epoch, *, build=None, nbytes=10, **options):
        def release():
            self.released[epoch] = self.released.get(epoch, 0) + 1

        build = build or (lambda: Moment(epoch=epoch, step=0))
        return Pending(epoch, 10 * epoch, True, build, release, nbytes, **options)

    def all_released(self, count):
        return self.released == dict.fromkeys(range(count), 1)


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return True


def in_thread(function, *args, **kwargs):
    """Call in another thread and fail where it hangs; returns its result or raises its error."""
    outcome = []

    def call():
        try:
            outcome.append((function(*args, **kwargs), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "deadlock"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@pytest.fixture
def fake():
    return FakeWriter()


@pytest.fixture
def ledger():
    return Ledger()


# ---- what it does


def test_order_is_kept_and_one_thread_does_it_all(fake, ledger):
    writer = BackgroundWriter(fake, name="dynome-test")
    for epoch in range(300):
        writer.submit(ledger.pending(epoch))
    in_thread(writer.drain, PATIENCE)
    assert fake.epochs == list(range(300))
    assert writer.committed == 300
    assert ledger.all_released(300)
    assert writer.queued_bytes == 0
    assert 10 <= writer.peak_bytes <= 3000
    in_thread(writer.close, PATIENCE)
    assert fake.closed == 1
    assert fake.threads == {"dynome-test"}
    in_thread(writer.close, PATIENCE)
    assert fake.closed == 1


def test_what_a_pending_says_is_what_is_committed(tmp_path):
    expected = moments({"a": 3}, samples=4, epochs=1)
    recording = RecordingWriter.open(tmp_path / "run", describe({"a": 3}, samples=4))
    writer = BackgroundWriter(recording)
    where = []

    def read_metrics():
        where.append(threading.current_thread())
        return {"loss": ([6, 7], [0.5, 0.25])}

    writer.submit(
        Pending(
            7,
            70,
            False,
            lambda: expected[0],
            lambda: None,
            step_metrics=read_metrics,
            epoch_metrics=lambda: {"late": 2.0},
        )
    )
    writer.submit(Pending(8, 80, True, lambda: expected[1], lambda: None))
    writer.close()
    first, second = read_manifest(tmp_path / "run").live
    assert (first.epoch, first.step, first.epoch_complete) == (7, 70, False)
    assert (second.epoch, second.step, second.epoch_complete) == (8, 80, True)
    assert first.metrics == {"step": {"loss": {"step": [6, 7], "value": [0.5, 0.25]}}, "epoch": {"late": 2.0}}
    assert second.metrics["epoch"] == expected[1].epoch_metrics
    assert where != [threading.main_thread()]
    assert verify(tmp_path / "run", deep=True).clean


def test_cpu_time_of_the_thread_and_of_its_workers_counts(tmp_path):
    def busy():
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        return moments({"a": 200}, samples=4000, epochs=0)[0]

    recording = RecordingWriter.open(tmp_path / "run", describe({"a": 200}, samples=4000))
    writer = BackgroundWriter(recording)
    before = time.thread_time()
    writer.submit(Pending(0, 0, True, busy, lambda: None))
    writer.drain()
    assert time.thread_time() - before < 0.1
    assert writer.cpu_seconds > 0.2 + recording.cpu_seconds > 0.2
    assert recording.cpu_seconds > 0.001  # 3.2 MB are compressed there
    writer.close()


def test_submit_never_waits_for_a_slow_disk(fake, ledger):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    started = time.perf_counter()
    for epoch in range(200):
        writer.submit(ledger.pending(epoch))
    assert time.perf_counter() - started < 0.5
    assert writer.queued_bytes == writer.peak_bytes == 2000
    with pytest.raises(StorageError, match=r"run: not written within 0\.05 s"):
        in_thread(writer.drain, 0.05)
    assert writer.error is None
    fake.gate.set()
    in_thread(writer.drain, PATIENCE)
    assert fake.epochs == list(range(200))
    in_thread(writer.close, PATIENCE)


def test_run_happens_between_commits_and_gives_back(fake, ledger):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    threading.Timer(0.05, fake.gate.set).start()
    seen = in_thread(writer.run, lambda: (list(fake.epochs), threading.current_thread().name))
    assert seen == ([0], "dynome-writer")
    with pytest.raises(InvalidArgumentError, match="epoch 9"):
        in_thread(writer.run, lambda: (_ for _ in ()).throw(InvalidArgumentError("epoch 9")))
    assert writer.error is None  # the caller's own mistake
    writer.submit(ledger.pending(1, build=lambda: writer.run(lambda: Moment(epoch=1, step=0))))  # from within
    in_thread(writer.drain, PATIENCE)
    assert fake.epochs == [0, 1]
    in_thread(writer.close, PATIENCE)


def test_run_that_was_given_up_is_not_done_later(fake, ledger):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    done = []
    with pytest.raises(StorageError, match="not written within"):
        in_thread(writer.run, lambda: done.append(1), timeout=0.05)
    fake.gate.set()
    in_thread(writer.drain, PATIENCE)
    assert done == []
    in_thread(writer.close, PATIENCE)


# ---- what fails


@pytest.mark.parametrize("where", ["build", "commit", "metrics"])
@pytest.mark.parametrize("at", [0, 3])
def test_an_error_stops_it_and_is_told(fake, ledger, where, at):
    problem = ValueError("no")

    def fail():
        raise problem

    fake.gate.clear()
    woken = []
    writer = BackgroundWriter(fake, on_stop=lambda: woken.append(1))
    if where == "commit":
        fake.fail_at = {at: problem}
    for epoch in range(6):
        build = fail if where == "build" and epoch == at else None
        metrics = {"step_metrics": fail} if where == "metrics" and epoch == at else {}
        writer.submit(ledger.pending(epoch, build=build, **metrics))
    fake.gate.set()
    with pytest.raises(ValueError, match="no"):
        in_thread(writer.drain, PATIENCE)
    assert writer.error is problem
    assert fake.epochs == list(range(at))
    assert writer.committed == at
    assert woken == [1]
    assert ledger.all_released(6)
    assert writer.queued_bytes == 0
    with pytest.raises(ValueError, match="no"):
        writer.submit(ledger.pending(6))
    assert ledger.all_released(7)
    with pytest.raises(ValueError, match="no"):
        in_thread(writer.run, lambda: None)
    in_thread(writer.close, PATIENCE)  # it was told
    assert fake.closed == 1


def test_an_error_that_nobody_was_told_is_raised_by_close(fake, ledger):
    fake.fail_at = {0: StorageError("disk full")}
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    with pytest.raises(StorageError, match="disk full"):
        in_thread(writer.close, PATIENCE)
    assert fake.closed == 1
    in_thread(writer.close, PATIENCE)


def test_an_error_of_closing_is_raised(fake, monkeypatch):
    def close():
        raise StorageError("not published")

    monkeypatch.setattr(fake, "close", close)
    with pytest.raises(StorageError, match="not published"):
        in_thread(BackgroundWriter(fake).close, PATIENCE)


def test_a_release_that_fails_harms_nobody(fake, ledger, caplog):
    def release():
        raise ValueError("twice")

    writer = BackgroundWriter(fake)
    writer.submit(Pending(0, 0, True, lambda: Moment(epoch=0, step=0), release))
    writer.submit(ledger.pending(1))
    in_thread(writer.close, PATIENCE)
    assert fake.epochs == [0, 1]
    assert "could not be given back" in caplog.text


@pytest.mark.parametrize("doing", ["waiting", "committing"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError])
@untraced()
def test_a_killed_thread_is_noticed(fake, ledger, doing, kind):
    woken = []
    writer = BackgroundWriter(fake, on_stop=lambda: woken.append(1))
    if doing == "committing":
        fake.gate.clear()
        for epoch in range(3):
            writer.submit(ledger.pending(epoch))
        fake.entered.wait(PATIENCE)
        raise_in(writer._thread, kind)
    else:
        raise_in(writer._thread, kind)
        writer.submit(ledger.pending(0))  # it waits in C, so only this lets the exception arrive
    with pytest.raises((StorageError, MemoryError)) as caught:
        in_thread(writer.drain, PATIENCE)
    if kind is not MemoryError:
        assert str(caught.value) == f"run: the thread that writes was ended by {kind.__name__}."
    assert isinstance(writer.error, Exception)
    assert fake.epochs == []
    within(PATIENCE, lambda: ledger.all_released(3 if doing == "committing" else 1))
    assert woken == [1]
    in_thread(writer.close, PATIENCE)
    assert fake.closed == 1


def test_a_thread_that_vanished_without_a_word_is_noticed(fake, ledger, monkeypatch):
    """As when native code ends it: nothing of ours runs in it any more."""
    woken = []
    monkeypatch.setattr(BackgroundWriter, "_main", lambda self: self._queue.get())
    writer = BackgroundWriter(fake, on_stop=lambda: woken.append(1))
    writer.submit(ledger.pending(0))
    within(PATIENCE, lambda: not writer._thread.is_alive())
    with pytest.raises(StorageError, match="the thread that writes was killed; restart"):
        writer.submit(ledger.pending(1))
    assert woken == [1]
    with pytest.raises(StorageError, match="was killed"):
        in_thread(writer.drain)
    in_thread(writer.close)
    assert fake.closed == 1
    assert ledger.released == {0: 1, 1: 1}


def test_a_vanished_thread_ends_the_waiting_of_drain_and_close(fake, ledger, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(BackgroundWriter, "_main", lambda self: gate.wait())
    for method in ("drain", "close"):
        gate.clear()
        writer = BackgroundWriter(fake)
        writer.submit(ledger.pending(0))
        threading.Timer(0.15, gate.set).start()
        with pytest.raises(StorageError, match="was killed"):
            in_thread(getattr(writer, method))
    assert ledger.released == {0: 2}
    assert fake.closed == 1
    in_thread(writer.close)


def test_who_waits_for_a_buffer_is_woken(fake, ledger):
    """A pool of one slot, full; the disk fails: whoever waits for the slot goes on."""
    slot = threading.Semaphore(1)
    stopped = threading.Event()

    def acquire():
        while not slot.acquire(timeout=0.01):
            if stopped.is_set():
                raise StorageError("stopped")

    fake.gate.clear()
    fake.fail_at = {0: OSError("disk full")}
    writer = BackgroundWriter(fake, on_stop=stopped.set)
    acquire()
    writer.submit(ledger.pending(0))
    threading.Timer(0.05, fake.gate.set).start()
    with pytest.raises(StorageError, match="stopped"):
        in_thread(acquire)
    with pytest.raises(OSError, match="disk full"):
        in_thread(writer.drain)
    in_thread(writer.close)


# ---- closing and interrupting


@pytest.mark.parametrize("method", ["submit", "run"])
def test_a_closed_one_takes_nothing_more(fake, ledger, method):
    writer = BackgroundWriter(fake)
    in_thread(writer.close)
    argument = ledger.pending(0) if method == "submit" else lambda: None
    with pytest.raises(InvalidArgumentError, match="run: the recording is closed"):
        getattr(writer, method)(argument)
    assert ledger.all_released(1 if method == "submit" else 0)
    in_thread(writer.drain)


def test_closing_that_takes_too_long_gives_up_what_waits(fake, ledger):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    fake.entered.wait(PATIENCE)
    for epoch in range(1, 4):
        writer.submit(ledger.pending(epoch))
    with pytest.raises(StorageError, match=r"closing took longer than 0\.05 s"):
        in_thread(writer.close, 0.05)
    assert ledger.released == {1: 1, 2: 1, 3: 1}
    fake.gate.set()
    within(PATIENCE, lambda: fake.closed == 1)
    assert fake.epochs == [0]
    assert ledger.all_released(4)


def interrupt_after(seconds, condition=lambda: True):
    """Send this process a real Ctrl-C; Python raises it in the main thread."""

    def send():
        time.sleep(seconds)
        within(PATIENCE, condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_an_interrupt_of_drain_leaves_everything_in_order(fake, ledger):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    thread = interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        writer.drain(PATIENCE)
    thread.join()
    writer.submit(ledger.pending(1))
    fake.gate.set()
    in_thread(writer.close, PATIENCE)
    assert fake.epochs == [0, 1]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_second_interrupt_ends_the_waiting(fake, ledger, interrupted, caplog):
    """Ctrl-C while closing: the first is told and waits on, unless one led here; the next gives up what waits."""
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    fake.entered.wait(PATIENCE)
    writer.submit(ledger.pending(1))
    threads = [interrupt_after(0.1)]
    if not interrupted:
        threads.append(interrupt_after(0.1, lambda: "interrupt again" in caplog.text))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        writer.close(PATIENCE, interrupted=interrupted)
    assert time.monotonic() - started < PATIENCE / 2
    assert ("interrupt again" in caplog.text) is not interrupted
    for thread in threads:
        thread.join()
    assert ledger.released == {1: 1}
    fake.gate.set()
    within(PATIENCE, lambda: fake.closed == 1)
    assert fake.epochs == [0]


def test_one_interrupt_of_close_loses_nothing_and_is_raised_in_the_end(fake, ledger, caplog):
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    for epoch in range(3):
        writer.submit(ledger.pending(epoch))
    thread = interrupt_after(0.1)
    threading.Thread(
        target=lambda: (within(PATIENCE, lambda: "interrupt again" in caplog.text), fake.gate.set()), daemon=True
    ).start()
    with pytest.raises(KeyboardInterrupt):
        writer.close(PATIENCE)
    thread.join()
    assert fake.epochs == [0, 1, 2]
    assert fake.closed == 1
    assert ledger.all_released(3)


# ---- any order of everything

EVENTS = st.lists(
    st.sampled_from(["submit", "bad build", "bad commit", "kill", "drain", "run", "slow", "close"]), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
@untraced()
def test_no_order_of_failures_hangs_or_leaks(events):
    """Whatever happens in whatever order: every call returns, every buffer comes back once, the writer closes once."""
    fake, ledger, woken = FakeWriter(), Ledger(), []
    writer = BackgroundWriter(fake, on_stop=lambda: woken.append(1))
    count = 0

    def fail():
        raise ValueError("no")

    def attempt(call, *args):
        with contextlib.suppress(ValueError, StorageError, InvalidArgumentError):
            in_thread(call, *args)

    for event in [*events, "close"]:
        if event in ("submit", "bad build", "bad commit"):
            if event == "bad commit":
                fake.fail_at[count] = ValueError("no")
            attempt(writer.submit, ledger.pending(count, build=fail if event == "bad build" else None))
            count += 1
        elif event == "kill":
            if writer._thread.is_alive():
                raise_in(writer._thread)
        elif event == "slow":
            fake.gate.clear()
            threading.Timer(0.02, fake.gate.set).start()
        elif event == "run":
            attempt(writer.run, lambda: None)
        else:
            attempt(getattr(writer, event), PATIENCE)
    within(PATIENCE, lambda: ledger.all_released(count))
    assert fake.closed == 1
    assert fake.epochs == list(range(len(fake.epochs)))  # a prefix: nothing is committed after what failed
    assert len(woken) <= 1
    assert (writer.error is None) == (len(fake.epochs) == count) or "close" in events or "kill" in events


# ---- the end of a process, and its children

PRELUDE = """
import os, sys, time, threading
sys.path.insert(0, sys.argv[2])
from recordings import describe, moments
from dynome_recorder.background import BackgroundWriter, Pending
from dynome_recorder.storage.writer import RecordingWriter

given = moments({"a": 30}, samples=40, epochs=40)
writer = BackgroundWriter(RecordingWriter.open(sys.argv[1], describe({"a": 30}, samples=40)))

def submit(epochs, slow=0.0):
    for epoch in epochs:
        def build(epoch=epoch):
            time.sleep(slow)
            return given[epoch]
        writer.submit(Pending(epoch, epoch, True, build, lambda: None))
"""


def run_script(path, code, *, timeout=60):
    command = [sys.executable, "-c", PRELUDE + code, str(path), str(Path(__file__).parents[1])]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("raise ValueError('training failed')", 1)],
)
def test_what_waits_is_committed_when_the_interpreter_ends(tmp_path, end, code):
    """Nobody closed: the threads that compress are gone by then, and what waits is still committed."""
    done = run_script(tmp_path / "run", f"submit(range(41), slow=0.005)\n{end}")
    assert done.returncode == code
    assert "Exception" not in done.stderr
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == list(range(41))
    assert verify(tmp_path / "run", deep=True).clean


def test_training_in_another_thread_may_outlive_the_main_thread(tmp_path):
    done = run_script(
        tmp_path / "run",
        "threading.Thread(target=lambda: (time.sleep(0.3), submit(range(41)), writer.close())).start()",
    )
    assert done.returncode == 0, done.stderr
    assert len(read_manifest(tmp_path / "run").live) == 41
    assert verify(tmp_path / "run", deep=True).clean


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "writer.close(); sys.exit(0)", "raise ValueError"])
def test_forked_children_leave_it_alone(tmp_path, end):
    """A DataLoader's worker inherits the recorder: it neither hangs nor writes, however it ends."""
    code = f"""
submit(range(20), slow=0.002)
children = []
for number in range(8):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        submit(range(20))
        writer.drain()
        {end}
    children.append(child)
codes = {{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}}
submit(range(20, 41))
writer.close()
print("closed", *codes)
"""
    done = run_script(tmp_path / "run", code)
    assert done.stdout == f"closed {int('raise' in end)}\n", done.stderr
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == list(range(41))
    assert verify(tmp_path / "run", deep=True).clean


def test_two_interrupts_end_a_process_whose_disk_hangs(tmp_path):
    """The first Ctrl-C ends the training, the next the waiting; what was committed is safe."""
    code = """
submit(range(10))
writer.drain()
submit([10], slow=1000.0)
try:
    print("ready", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("closing", flush=True)
    writer.close(interrupted=True)
"""
    command = [sys.executable, "-c", PRELUDE + code, str(tmp_path / "run"), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "closing\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode in (1, 130, -signal.SIGINT)
    assert len(read_manifest(tmp_path / "run").live) == 10
    RecordingWriter.open(tmp_path / "run", describe({"a": 30}, samples=40)).close()


def test_a_long_queue_is_committed_in_groups(fake, ledger):
    sizes = []
    commit_all = fake.commit_all
    fake.commit_all = lambda given: (sizes.append(len(given)), commit_all(given))[1]
    fake.gate.clear()
    writer = BackgroundWriter(fake)
    writer.submit(ledger.pending(0))
    fake.entered.wait(PATIENCE)
    for epoch in range(1, 150):
        writer.submit(ledger.pending(epoch))
    for epoch in range(150, 153):
        writer.submit(ledger.pending(epoch, nbytes=background.GROUP_BYTES))
    fake.gate.set()
    in_thread(writer.close, PATIENCE)
    assert sizes[:3] == [1, 64, 64]
    assert sizes[3:] == [22, 1, 1]
    assert fake.epochs == list(range(153))
