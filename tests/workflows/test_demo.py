"""The demo goes the whole way on real data, goes on where it was interrupted, and never writes where it must not."""

import io
import json
from collections.abc import Callable  # noqa: TC003
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from filelock import FileLock
from rich.console import Console

from dynome_analysis.demo import closing_table, run_demo
from dynome_analysis.demo.folder import open_demo_folder
from dynome_analysis.demo.run import run_demo_with
from dynome_analysis.demo.settings import DemoSettings, RunSettings, demo_settings
from dynome_analysis.demo.summary import encode_summary, package_versions
from dynome_recorder.errors import (
    InvalidArgumentError,
    InvalidDataError,
    RecordingLockedError,
    StorageError,
)
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

Finished: TypeAlias = tuple[Path, dict[str, Any], list[str], list[Any]]


def small_run(name: str, *, learning_rate: float = 0.1, seed: int = 0, epochs: int = 3) -> RunSettings:
    return RunSettings(
        name=name,
        hidden=(8, 6),
        learning_rate=learning_rate,
        dropout=0.25,
        epochs=epochs,
        probe_size=20,
        seed=seed,
    )


SMALL = DemoSettings(
    dataset="digits",
    quick=True,
    seed=0,
    train_size=64,
    validation_size=20,
    main=small_run("main", epochs=5),
    sweep=tuple(
        small_run(f"sweep-{place}", learning_rate=rate, seed=place)
        for place, rate in enumerate((0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5))
    ),
    patience=2,
    prediction_epochs=2,
)


def without_timings(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "timings"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A small demo that ran through: its folder, summary, what it told, and its progress."""
    out = tmp_path_factory.mktemp("demo") / "out"
    told: list[str] = []
    progress: list[Any] = []
    summary = run_demo_with(
        SMALL,
        out,
        tell=told.append,
        progress=lambda description, done, total: progress.append((description, done, total)),
    )
    return out, summary, told, progress


def test_the_summary_holds_what_is_promised(finished: Finished) -> None:
    _, summary, *_ = finished
    assert (summary["snapshots"], summary["sites"], summary["units"]) == (6, 2, 14)
    assert set(summary["stopping"]) == {"top", "fp", "vl", "oracle"}
    for rule in summary["stopping"].values():
        assert set(rule) == {"best_epoch", "trigger_epoch", "test_accuracy_best", "test_accuracy_trigger"}
        assert rule["best_epoch"] is None or isinstance(rule["best_epoch"], int)
        assert (rule["trigger_epoch"] is None) == (rule["test_accuracy_trigger"] is None)
    assert summary["stopping"]["oracle"]["trigger_epoch"] is None
    traces = [summary["learning_rate"][name] for name in ("epochs", "distance", "z", "state", "rate")]
    assert {len(trace) for trace in traces} == {6}
    assert traces[0] == [0, 1, 2, 3, 4, 5]
    assert traces[1][0] is None
    assert all(value > 0 for value in traces[1][1:])
    prediction = summary["prediction"]
    assert (prediction["target"], prediction["n_runs"], prediction["epochs_used"]) == ("test_accuracy", 8, 2)
    assert isinstance(prediction["r2"], float)
    assert isinstance(prediction["mae"], float)
    assert set(prediction["baselines"]) == {"mean", "hyperparameters", "accuracy_at_T"}
    assert all({"r2", "mae"} <= set(scores) for scores in prediction["baselines"].values())
    assert len(summary["dead_units"]) == 6
    assert summary["versions"]["torch"]
    assert set(summary["timings"]) == {"data", "training", "analysis", "replay", "prediction", "report", "total"}


def test_the_summary_is_strict_json_on_disk(finished: Finished) -> None:
    out, summary, *_ = finished

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads((out / "summary.json").read_text(), parse_constant=refuse) == summary
    assert str(out) not in (out / "summary.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_summary({"value": float("nan")})


def test_the_folder_holds_recordings_and_a_report(finished: Finished) -> None:
    out, _, told, progress = finished
    assert told == [f"started in {out}: 9 networks to train"]
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["main", *(run.name for run in SMALL.sweep)]
    assert not (out / "checkpoints").exists()
    assert (out / "report.html").stat().st_size > 1e6
    assert [step for step in progress if step[0] == "training"][-1] == ("training", 29, 29)
    assert {step[0] for step in progress} >= {"training", "analyzing snapshots"}
    assert verify(out / "runs" / "main", deep=True).findings == ()
    manifest = read_manifest(out / "runs" / "main")
    assert set(manifest.epoch_metrics()) == {"train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy"}
    assert {name: len(steps) for name, (steps, _) in manifest.step_metrics().items()} == {"loss": 10, "lr": 10}
    assert len(manifest.snapshots("weights")) == 6


def test_a_second_call_reuses_everything(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynome_analysis.demo import training

    out, summary, *_ = finished
    monkeypatch.setattr(training, "train", lambda *args, **options: pytest.fail("trained again"))
    told: list[str] = []
    again = run_demo_with(SMALL, out, tell=told.append)
    assert told == [f"complete: reused 9 recordings in {out}"]
    assert without_timings(again) == without_timings(summary)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Let a function raise at its n-th call."""
    original: Callable[..., Any] = getattr(owner, name)
    count = 0

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise Interrupted
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize(
    ("where", "calls", "message"),
    [
        # Within an epoch, between checkpoint and commit, between two runs.
        ("step", 6, "resumed main at epoch 2: reused 0 complete recordings of 9"),
        ("epoch", 4, "resumed main at epoch 3: reused 0 complete recordings of 9"),
        ("train", 5, "resumed run 5: reused 4 complete recordings of 9"),
    ],
)
def test_an_interrupted_demo_ends_as_if_it_had_not_been(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    calls: int,
    message: str,
) -> None:
    from dynome_analysis.demo import training
    from dynome_recorder import Recorder

    with monkeypatch.context() as patched:
        interrupt_at(patched, training if where == "train" else Recorder, where, calls)
        with pytest.raises(Interrupted):
            run_demo_with(SMALL, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()
    told: list[str] = []
    summary = run_demo_with(SMALL, tmp_path / "out", tell=told.append)
    assert told[0].startswith(message)
    assert without_timings(summary) == without_timings(finished[1])
    assert verify(tmp_path / "out" / "runs" / "main", deep=True).findings == ()


def test_another_demo_in_the_folder_is_refused_and_fresh_starts_over(tmp_path: Path) -> None:
    first = replace(SMALL, main=replace(SMALL.main, epochs=1))
    with open_demo_folder(tmp_path / "out", first, fresh=False) as folder:
        assert not folder.found
        folder.recording("main").mkdir(parents=True)
        (folder.recording("main") / "run.json").write_text("{}")
        folder.summary.write_text("{}")
        (tmp_path / "out" / "notes.txt").write_text("mine")
    with (
        pytest.raises(InvalidArgumentError, match=r"made otherwise \(seed differs\): start over with --fresh"),
        open_demo_folder(tmp_path / "out", replace(first, seed=1), fresh=False),
    ):
        pass
    assert (tmp_path / "out" / "runs").exists()
    with open_demo_folder(tmp_path / "out", first, fresh=False) as folder:
        assert folder.found
    with open_demo_folder(tmp_path / "out", replace(first, seed=1), fresh=True) as folder:
        assert not folder.found
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["demo.json", "demo.lock", "notes.txt"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_of_somebody_else_stays_untouched(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").write_text("data")
    with pytest.raises(InvalidArgumentError, match=r"was not made by dynome demo.*--out"):
        run_demo_with(SMALL, tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs" / "precious").read_text() == "data"


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "demo.lock").touch()
    (tmp_path / "demo.json.partial").write_text('{"made')
    with open_demo_folder(tmp_path, SMALL, fresh=False) as folder:
        assert not folder.found


def test_a_damaged_marker_is_not_taken_for_the_same_demo(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with (
        pytest.raises(InvalidArgumentError, match="made otherwise"),
        open_demo_folder(tmp_path, SMALL, fresh=False),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="is a file: name a folder"):
        run_demo_with(SMALL, tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot be written \(Not a directory\)"):
        run_demo_with(SMALL, tmp_path / "file" / "out")


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / "demo.lock"),
        pytest.raises(RecordingLockedError, match="another dynome demo is working in"),
        open_demo_folder(tmp_path, SMALL, fresh=False),
    ):
        pass


@pytest.mark.parametrize(("damage", "words"), [("unlink", "is missing"), ("truncate", "cannot be read")])
def test_a_lost_checkpoint_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, words: str
) -> None:
    from dynome_recorder import Recorder

    with monkeypatch.context() as patched:
        interrupt_at(patched, Recorder, "step", 6)
        with pytest.raises(Interrupted):
            run_demo_with(SMALL, tmp_path / "out")
    for path in (tmp_path / "out" / "checkpoints" / "main").iterdir():
        path.unlink() if damage == "unlink" else path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidDataError, match=rf"checkpoint .*pt {words}.*after epoch 2: start over with --fresh"):
        run_demo_with(SMALL, tmp_path / "out")


def test_the_settings_are_what_is_promised() -> None:
    for dataset in ("digits", "mnist", "fashion-mnist"):
        full, quick = (demo_settings(dataset, quick=quick, seed=3) for quick in (False, True))  # type: ignore[arg-type]
        assert full.main.epochs == 40
        assert len(full.main.hidden) == 2
        assert len(full.sweep) >= 24
        assert len(quick.sweep) >= 12
        assert quick.main.epochs < full.main.epochs
        for settings in (full, quick):
            runs = (settings.main, *settings.sweep)
            assert len({run.name for run in runs}) == len({run.seed for run in runs}) == len(runs)
            assert all(run.epochs > settings.prediction_epochs for run in settings.sweep)
            for name in ("learning_rate", "dropout", "width"):
                assert len({run.hyperparameters()[name] for run in settings.sweep}) > 1
            assert json.loads(json.dumps(settings.as_json())) == settings.as_json()


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown data set 'cifar'"):
        run_demo(tmp_path / "out", dataset="cifar")
    with pytest.raises(InvalidArgumentError, match=r"seed must be 0 or more, .* got -1"):
        run_demo(tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()


def test_the_public_call_takes_the_promised_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("dynome_analysis.demo.run.run_demo_with", lambda *args, **options: seen.append((args, options)))
    run_demo(tmp_path, dataset="mnist", quick=True, seed=2, fresh=True)
    ((settings, out), options) = seen[0]
    assert settings == demo_settings("mnist", quick=True, seed=2)
    assert out == tmp_path
    assert options["fresh"] is True


def test_the_closing_table_tells_never_from_undefined(finished: Finished) -> None:
    summary = json.loads(json.dumps(finished[1]))
    summary["stopping"]["top"] = dict.fromkeys(summary["stopping"]["top"])
    summary["prediction"]["baselines"]["hyperparameters"] = {"r2": None, "mae": None}
    text = io.StringIO()
    Console(file=text, width=100).print(closing_table(summary))
    lines = text.getvalue().splitlines()
    top = next(line for line in lines if "TOP" in line)
    assert (top.count("–"), top.count("never")) == (3, 1)
    assert "never" not in next(line for line in lines if "oracle" in line), "an oracle looks back, it never stops"
    assert next(line for line in lines if "hyper-parameters" in line).count("–") == 2
    assert "8 short runs" in text.getvalue()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynome_analysis.demo.summary.PACKAGES", ("numpy", "no-such-package"))
    versions = package_versions()
    assert versions["numpy"]
    assert versions["no-such-package"] is None
