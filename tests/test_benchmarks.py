"""Every arm of the recording benchmarks runs once and reads back what hooks saw; no time is asserted."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from benchmarks import overhead, page, recording, recording_commit, recording_reading
from benchmarks.__main__ import main
from benchmarks.intervals import median_interval
from benchmarks.recording_arms import ARMS, BARE_FORWARD, Ours, by_hooks, is_installed, title
from benchmarks.recording_models import MODELS, pictures, subject
from benchmarks.recording_worker import ArmError, Session, Worker
from benchmarks.timing import Row
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = 24
MODEL = "MLP, 8 x 64"


def save_pictures(folder: Path) -> Path:
    images, labels, _ = pictures(SAMPLES)
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    return folder / "pictures.npz"


def check(found: dict[str, dict[str, float | str]], arms: tuple[str, ...]) -> None:
    assert set(found) == set(recording.MEASURES)
    for measure, values in found.items():
        assert list(values) == list(arms)
        for arm, value in values.items():
            if not is_installed(arm):
                assert value == "not installed"
            elif arm == BARE_FORWARD and measure == "reading":
                assert value == ""
            else:
                assert isinstance(value, float), (arm, value)


def test_arms_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    arms = ("ours", "TorchLens, np.save", "nnsight, np.save", BARE_FORWARD)
    found = recording.measure(MODEL, tmp_path, samples=SAMPLES, snapshots=5, rounds=1, block=2, arms=arms)
    check(found, arms)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if "np.save" not in arm or arm.startswith("hooks")])
def test_an_arm_reads_back_what_hooks_saw(arm: str, tmp_path: Path) -> None:
    if not is_installed(arm):
        check(recording.measure(MODEL, tmp_path, samples=SAMPLES, arms=[arm]), (arm,))
        return
    (tmp_path / "own").mkdir()
    session = Session(arm, MODEL, save_pictures(tmp_path), tmp_path / "own", "cpu")
    assert session.remember(5, 60.0)["snapshots"] == 5
    assert session.block(2) > 0
    assert len(session.blocked(2)) == 2
    size = session.close()
    if arm == BARE_FORWARD:
        assert size == 0
    else:
        assert size > 1000
        assert list(session.kept) == [5, 6, 7, 8]
        assert len(session.read(3)) == 3


@pytest.mark.parametrize("name", MODELS)
def test_ours_holds_what_hooks_saw_of_every_model(name: str, tmp_path: Path) -> None:
    images, labels, _ = pictures(SAMPLES)
    model = subject(name, images, labels)
    arm = Ours(model, tmp_path)
    expected = []
    for _ in range(2):
        model.train(2, batch_size=8)
        expected.append(by_hooks(model))
        arm.snapshot()
    arm.finish()
    arm.close()
    assert not np.array_equal(expected[0][model.sites[-1]], expected[1][model.sites[-1]])
    for index, activations in enumerate(expected):
        found = arm.read(index)
        assert set(found) == set(model.sites)
        for site, array in activations.items():
            assert array.ndim == 2
            np.testing.assert_array_equal(found[site], array)


def test_an_arm_that_reads_other_values_fails(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    session = Session("hooks, np.save", MODEL, save_pictures(tmp_path), tmp_path / "own", "cpu")
    session.block(1)
    right = session.arm.read
    session.close()
    assert len(session.read(2)) == 2
    session.arm.read = lambda index: {site: array + 1e-6 for site, array in right(index).items()}  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="1 of snapshot 0 is read back differently"):
        session.read(1)


def test_an_arm_that_dies_says_why(tmp_path: Path) -> None:
    worker = Worker()
    with pytest.raises(ArmError, match="fails: FileNotFoundError"):
        worker.ask("open", "hooks, np.save", MODEL, str(tmp_path / "no.npz"), str(tmp_path), "cpu")
    worker.stop()


def test_a_missing_peer_gets_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(ARMS, "hooks, h5py", (Ours, "no_such_library"))
    assert title("hooks, h5py") == "hooks, h5py (not installed)"
    found = recording.measure(MODEL, tmp_path, samples=SAMPLES, arms=["hooks, h5py"])
    assert {arms["hooks, h5py"] for arms in found.values()} == {"not installed"}


def test_memory_is_told_early_and_late(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    session = Session(BARE_FORWARD, MODEL, save_pictures(tmp_path), tmp_path / "own", "cpu")
    kept = []
    session.arm.snapshot = lambda: kept.append(np.ones(2**17))  # type: ignore[method-assign]  1 MiB each
    found = session.remember(20, 60.0)
    assert found["snapshots"] == 20
    # What earlier tests of this process left may be given back meanwhile: a lower bound is all that holds.
    assert 4 * 2**20 < found["late"] - found["early"] < 20 * 2**20
    assert found["peak"] >= found["late"]


def test_hooks_are_seen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    overhead.check_bare(model)
    for attach, place in (
        (model[1].register_forward_hook, "of 1: a hook"),
        (model.register_full_backward_hook, "of the model: a hook"),
        (torch.nn.modules.module.register_module_forward_hook, "all modules"),
    ):
        handle = attach(lambda *_: None)
        try:
            with pytest.raises(AssertionError, match=place):
                overhead.check_bare(model)
        finally:
            handle.remove()
    overhead.check_bare(model)


def test_overhead_between_probes(tmp_path: Path) -> None:
    row = overhead.between_probes(MODEL, tmp_path, rounds=3, images=1280)
    assert float(str(row.values["recorded / unrecorded"]).split()[0]) > 0


def test_overhead_of_epochs(tmp_path: Path) -> None:
    row = overhead.epoch_cost(MODEL, tmp_path, rounds=2, images=1280)
    assert float(str(row.values["writer's CPU per epoch, ms"]).split()[0]) > 0


def test_overhead_of_batches(tmp_path: Path) -> None:
    row = overhead.batches_cost(MODEL, tmp_path, rounds=2, images=1280)
    assert "with gradients: per recorded step, ms" in row.values


def test_commit_in_bytes_per_second(tmp_path: Path) -> None:
    row = recording_commit.measure("ReLU", tmp_path, samples=8, units=16, seconds=0.01)
    assert row.unit == "MB/s"
    assert all(isinstance(rate, float) and rate > 0 for rate in row.values.values())


def test_all_ways_of_reading_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = list(recording_reading.rows(snapshots=3, samples=SAMPLES, rounds=1))
    assert len(rows) == 15
    assert all(isinstance(value, float) and value > 0 for row in rows for value in row.values.values())
    assert all(next(iter(row.values)) == "ours" for row in rows)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_an_interval_holds_its_median(values: list[float]) -> None:
    found = median_interval(values)
    assert found.median == pytest.approx(statistics.median(values))
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_an_interval_covers_the_true_median() -> None:
    generator = np.random.default_rng(0)
    found = [median_interval(generator.normal(1.0, 0.1, 60)) for _ in range(200)]
    assert 0.88 < statistics.mean(one.low <= 1.0 <= one.high for one in found) < 0.99


def test_the_page_shows_units_and_ratios() -> None:
    rate = Row("commit", "1 MiB", {"ours": 2e8, "peer": 1e8, "other": "fails"}, unit="MB/s")
    size = Row("on disk", "MLP", {"ours": 2.0**20, "peer": 3 * 2.0**20}, unit="MiB")
    text = Row("steps", "MLP", {"ratio": "1.001 [0.999, 1.003]"}, unit="")
    assert page.tables([rate, size, text]) == [
        "| commit, MB/s | 1 MiB |\n| --- | --- |\n| **ours** | 200 |\n| peer | 100 (2x) |\n| other | fails |",
        "| on disk, MiB | MLP |\n| --- | --- |\n| **ours** | 1 |\n| peer | 3 (3x) |",
        "| steps | MLP |\n| --- | --- |\n| **ratio** | 1.001 [0.999, 1.003] |",
    ]


def test_only_tables_that_train_run_on_another_device() -> None:
    result = CliRunner().invoke(main, ["births", "--device", "cuda"])
    assert result.exit_code == 2
    assert "births does not train a model" in result.output
