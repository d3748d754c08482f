"""The commands of the analysis: one JSON object or tables, one line and an exit code for every wrong input."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner, Result
from recordings import write_recording

import dynome_analysis as dya
from dynome_analysis import commands
from dynome_analysis.connectome.columns import Measure
from dynome_analysis.datasets import DatasetName
from dynome_analysis.persistence.rips import Engine
from dynome_analysis.prediction.estimators import Estimator
from dynome_analysis.replay.learning_rate import LearningRateRule
from dynome_analysis.replay.replay import Distance
from dynome_analysis.replay.stopping import SIGNALS
from dynome_recorder.cli import main
from dynome_recorder.storage.format import seal

SMALL = {"sites": {"hidden1": 6, "hidden2": 5}, "samples": 24}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments: object) -> Any:
    """Return the one JSON object that a command prints."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def refusal(*arguments: object) -> tuple[int, str]:
    """Return exit code and the one line of a command that fails, after checking that --json fails alike."""
    result = call(*arguments)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    error = json.loads(call(*arguments, "--json").stdout)["error"]
    assert error["exit_code"] == result.exit_code
    assert result.stderr == f"dynome: error: {error['message']}\n"
    return result.exit_code, error["message"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("runs") / "run", epochs=9, **SMALL)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sweep")
    return [
        write_recording(
            folder / f"run-{seed}", epochs=7, seed=seed, hyperparameters={"learning_rate": 0.01 * (seed + 1)}, **SMALL
        )
        for seed in range(9)
    ]


def test_analyze(run: Path, sweep: list[Path]) -> None:
    document = answer("analyze", run, sweep[0])
    expected = dya.analyze(dya.open_recording(run))
    row = document["recordings"][0]
    assert [one["path"] for one in document["recordings"]] == [str(run), str(sweep[0])]
    assert row["epoch"] == list(range(10))
    assert row["sites"] == ["hidden1", "hidden2"]
    assert row["units"] == 11
    assert row["reconfiguration_deaths"][0] is None
    for name in ("reconfiguration_top", "functional_persistence", "noise_floor_paired", "dead_units"):
        shown = [math.nan if value is None else value for value in row[name]]
        np.testing.assert_array_equal(shown, expected[name].values)
    assert any((run / "analysis.zarr").iterdir())
    text = call("analyze", run, "--refresh").stdout
    assert "0 to 9" in text
    assert f"{expected.reconfiguration_deaths.values[-1]:.4g}" in text


def test_analyze_some_sites(run: Path) -> None:
    assert answer("analyze", run, "--sites", "*2")["recordings"][0]["units"] == 5
    assert answer("analyze", run, "--sites", "*2", "--sites", "hidden1")["recordings"][0]["units"] == 11


def test_analyze_passes_every_option(run: Path) -> None:
    row = answer(
        "analyze", run, "--measure", "spearman", "--units", 7, "--until", 4, "--engine", "none",
        "--deaths", "histogram", "--route", "dense", "--memory-limit", "1GB", "--seed", 3,
    )["recordings"][0]  # fmt: skip
    expected = dya.analyze(
        dya.open_recording(run), measure="spearman", units=7, until=4, engine="none", deaths="histogram",
        route="dense", memory_limit=10**9, seed=3,
    )  # fmt: skip
    assert row["units"] == 7
    assert row["epoch"] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(row["noise_floor_paired"][1:], expected["noise_floor_paired"].values[1:])
    assert set(row["functional_persistence"]) == {None}


def test_the_choices_of_analyze_are_those_of_the_library() -> None:
    assert get_args(Measure) == commands.MEASURES
    assert {*get_args(Engine), "none"} == set(commands.ENGINES)


def test_replay_stopping(run: Path) -> None:
    row = answer("replay", "stopping", run)["recordings"][0]
    assert list(row["stopping"]) == ["top", "fp", "vl", "oracle"]
    expected = dya.replay_stopping(dya.open_recording(run))
    for rule, figures in row["stopping"].items():
        for name, value in figures.items():
            np.testing.assert_equal(math.nan if value is None else value, expected[name].sel(rule=rule).item())
    assert row["stopping"]["oracle"]["trigger_epoch"] is None
    assert {len(series) for series in row["signal"].values()} == {len(row["epochs"])}
    assert row["parameters"]["patience"] == 5


def test_replay_stopping_passes_every_option(run: Path) -> None:
    row = answer(
        "replay", "stopping", run, "--rule", "vl", "--rule", "oracle", "--patience", 2, "--burn-in", 3,
        "--test-metric", "val_loss", "--test-mode", "min",
        "--validation-metric", "val_accuracy", "--validation-mode", "max",
    )["recordings"][0]  # fmt: skip
    assert list(row["stopping"]) == ["vl", "oracle"]
    assert row["parameters"] == {
        "patience": 2,
        "burn_in": 3,
        "test_metric": "val_loss",
        "test_mode": "min",
        "validation_metric": "val_accuracy",
        "validation_mode": "max",
    }
    bare = answer("replay", "stopping", run, "--rule", "fp", "--no-test-metric", "--sites", "hidden1")["recordings"][0]
    assert bare["parameters"]["test_metric"] is None
    assert bare["stopping"]["fp"]["test_accuracy_best"] is None


def test_without_a_test_metric_the_other_rules_are_replayed(run: Path) -> None:
    (row,) = answer("replay", "stopping", run, "--no-test-metric")["recordings"]
    assert list(row["stopping"]) == ["top", "fp", "vl"]


def test_the_stopping_table_spells_never_triggered(run: Path) -> None:
    text = call("replay", "stopping", run, "--rule", "vl", "--rule", "oracle", "--patience", 50).stdout
    assert "never triggered" in text
    assert text.count("never triggered") == 1  # the oracle is no rule that could have
    stopped = call("replay", "stopping", run, "--rule", "fp", "--no-test-metric", "--patience", 1).stdout
    assert "never triggered" not in stopped
    assert "no test metric" in stopped


def test_replay_lr_says_open_loop(run: Path) -> None:
    document = answer("replay", "lr", run, "--window", 4, "--base-rate", 0.3, "--distance", "wasserstein")
    assert document["loop"] == "open"
    assert "open loop" in document["note"]
    row = document["recordings"][0]
    trace = dya.replay_learning_rate(dya.open_recording(run), distance="wasserstein", base_rate=0.3, window=4)
    assert row["epochs"] == trace.epoch.values.tolist()
    assert row["state"] == [None, *trace.state.values.tolist()[1:]]
    assert row["rate"][1:] == trace.rate.values.tolist()[1:]
    assert row["rate"][0] is None
    assert {len(row[name]) for name in ("epochs", "steps", "distance", "z", "state", "gain", "envelope", "rate")} == {
        10
    }
    assert row["parameters"]["window"] == 4
    text = " ".join(call("replay", "lr", run).stdout.split())
    assert text.lower().count("open loop") == 2
    assert "base rate 0.05" in text


def test_predict(sweep: list[Path]) -> None:
    document = answer("predict", *sweep, "--epochs", 2, "--seed", 3)
    assert document["epochs_used"] == 2
    assert document["seed"] == 3
    assert document["n_runs"] == len(document["runs"]) == 9
    assert set(document["baselines"]) == {"mean", "hyperparameters", "accuracy_at_T"}
    text = call("predict", *sweep, "--epochs", 2, "--seed", 3).stdout
    assert f"{document['r2']:.4g}" in text
    assert "hyper-parameters only" in text
    assert "run-8" in text


def test_predict_names_the_runs_that_are_left_out(sweep: list[Path], tmp_path: Path) -> None:
    short = write_recording(tmp_path / "short", epochs=2, **SMALL)
    text = " ".join(call("predict", *sweep, short, "--epochs", 3).stdout.split())
    assert "left out: short:" in text


def test_report(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    document = answer("report", run, "--out", out, "--patience", 2)
    assert document["report"] == str(out)
    assert document["recordings"] == [{"path": str(run), "id": dya.open_recording(run).id}]
    assert "patience of 2 epochs" in out.read_text(encoding="utf-8")
    assert str(out) in call("report", run, "--out", out).stdout.replace("\n", "")


def test_demo_passes_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo itself is tested in its own room; here, that the command adds and loses nothing."""
    import dynome_analysis.demo

    asked: dict[str, Any] = {}
    scores = {"r2": 0.5, "mae": 0.01}

    def pretend(out: Path, *, tell: Callable[[str], None], **settings: Any) -> dict[str, Any]:
        tell("started in " + str(out))
        settings.pop("progress")("training", 1, 2)
        asked.update(out=out, **settings)
        stopping = {"best_epoch": 3, "trigger_epoch": None, "test_accuracy_best": 0.9, "test_accuracy_trigger": None}
        return {
            "stopping": {"top": stopping},
            "prediction": {"n_runs": 9, "epochs_used": 5, **scores, "baselines": {"mean": scores}},
            "snapshots": 21,
            "units": 192,
            "sites": 2,
            "dead_units": [0, 1],
            "timings": {"total": 1.0},
        }

    monkeypatch.setattr(dynome_analysis.demo, "run_demo", pretend)
    arguments = [
        "--out",
        tmp_path / "d",
        "--quick",
        "--dataset",
        "mnist",
        "--data-dir",
        tmp_path,
        "--seed",
        7,
        "--fresh",
    ]
    document = answer("demo", *arguments)
    assert asked == {
        "out": tmp_path / "d",
        "quick": True,
        "dataset": "mnist",
        "data_dir": tmp_path,
        "seed": 7,
        "fresh": True,
    }
    assert document["snapshots"] == 21
    assert document["report"] == str(tmp_path / "d" / "report.html")
    result = call("demo", "--out", tmp_path / "d")
    assert asked["quick"] is asked["fresh"] is False
    assert "started in" in result.stderr
    assert "report.html" in result.stdout.replace("\n", "")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings that each have one thing wrong."""
    folder = tmp_path_factory.mktemp("broken")

    def without_validation(moment: Any) -> Any:
        kept = {name: value for name, value in moment.epoch_metrics.items() if not name.startswith("val")}
        return dataclasses.replace(moment, epoch_metrics=kept)

    def with_nan(moment: Any) -> Any:
        probe = {site: values.copy() for site, values in moment.probe.items()}
        if moment.epoch == 3:
            probe["hidden2"][5, 1] = np.nan
        return dataclasses.replace(moment, probe=probe)

    runs = {
        "plain file": folder / "file.txt",
        "empty folder": folder / "empty",
        "one snapshot": write_recording(folder / "single", epochs=0, **SMALL),
        "no validation": write_recording(folder / "no-validation", change=without_validation, **SMALL),
        "nan": write_recording(folder / "nan", change=with_nan, **SMALL),
    }
    runs["plain file"].write_text("not a recording")
    runs["empty folder"].mkdir()
    for name in ("missing chunk", "truncated chunk", "unknown version"):
        runs[name] = write_recording(folder / name.replace(" ", "-"), **SMALL)
    for name in ("missing chunk", "truncated chunk"):
        files = dya.open_recording(runs[name]).manifest.live[2].files
        chunk = runs[name] / "store.zarr" / next(file for file in files if file.startswith("probe/"))
        if name == "missing chunk":
            chunk.unlink()
        else:
            os.truncate(chunk, chunk.stat().st_size // 2)
    document = json.loads((runs["unknown version"] / "run.json").read_text())
    document["format"]["version"] = "9.0"
    (runs["unknown version"] / "run.json").write_bytes(seal(document, indent=True))
    return runs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain file", "not a recording"),
        ("empty folder", "not a recording"),
        ("missing chunk", "missing"),
        ("truncated chunk", "bytes"),
        ("unknown version", "9.0"),
        ("nan", "'hidden2' hold NaN or infinity at epoch 3"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "replay stopping", "replay lr"])
def test_data_at_fault(broken: dict[str, Path], command: str, name: str, message: str) -> None:
    code, line = refusal(*command.split(), broken[name])
    assert code == 1
    assert message in line
    assert broken[name].name in line


@pytest.mark.parametrize("command", ["replay stopping", "replay lr"])
def test_one_snapshot(broken: dict[str, Path], command: str) -> None:
    code, line = refusal(
        *command.split(), broken["one snapshot"], *(["--rule", "top"] if "stopping" in command else [])
    )
    assert code == 1
    assert "needs at least 2" in line or "has no metric" in line


def test_no_validation_metric_asked_for_vl(broken: dict[str, Path]) -> None:
    code, line = refusal("replay", "stopping", broken["no validation"])
    assert code == 1
    assert line.startswith("rule 'vl': ")
    assert "(metrics there: test_accuracy)" in line
    assert "--validation-metric" in line
    assert call("replay", "stopping", broken["no validation"], "--rule", "top", "--rule", "oracle").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze"], "Missing argument 'RUN...'"),
        (["analyze", "RUN", "--sites", "nothing*"], "'nothing*' matches no site"),
        (["analyze", "RUN", "--workers", "0"], "--workers must be at least 1; got 0"),
        (["analyze", "RUN", "--workers", "2", "--scheduler", "tcp://localhost:1"], "name one of them"),
        (["analyze", "RUN", "--memory-limit", "much"], "--memory-limit must be a size such as 8GB or 500MiB"),
        (["analyze", "RUN", "--until", "-1"], "has no snapshot up to epoch -1"),
        (["analyze", "RUN", "--route", "streaming", "--measure", "cosine"], "cannot do measure='cosine'"),
        (["analyze", "RUN", "--scheduler", "cluster"], "--scheduler must look like tcp://HOST:PORT; got 'cluster'"),
        (["replay", "stopping", "RUN", "--rule", "early"], "'early' is not one of 'top'"),
        (["replay", "stopping", "RUN", "--patience", "0"], "patience must be at least 1"),
        (["replay", "stopping", "RUN", "--burn-in", "-1"], "burn_in must be an epoch"),
        (
            ["replay", "stopping", "RUN", "--no-test-metric", "--rule", "oracle"],
            "the rule 'oracle' needs a test metric",
        ),
        (["replay", "lr", "RUN", "--distance", "far"], "'far' is not one of 'top'"),
        (["replay", "lr", "RUN", "--alpha", "0.5"], "alpha must lie in (1/2, 1]"),
        (["replay", "lr", "RUN", "--base-rate", "0"], "base_rate must be positive"),
        (["predict", "RUN", "RUN"], "is the same run as"),
        (["predict", "RUN", "--epochs", "0"], "epochs must be a whole number of at least 1"),
        (["demo", "--seed", str(2**32)], "seed must be 0 or more, and less than 2^32"),
        (["demo", "--dataset", "imagenet"], "'imagenet' is not one of 'digits'"),
        (["demo", "--out", "RUN"], "was not made by dynome demo"),
        (["demo", "--seed", "-1"], "seed must be 0 or more"),
    ],
)
def test_call_at_fault(run: Path, arguments: list[str], message: str) -> None:
    code, line = refusal(*[str(run) if argument == "RUN" else argument for argument in arguments])
    assert code == 2
    assert message in line


@pytest.mark.parametrize(("arguments", "message"), [((), "Missing command"), (("rate",), "No such command 'rate'")])
def test_replay_needs_to_know_what(arguments: tuple[str, ...], message: str) -> None:
    result = call("replay", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_too_few_runs_to_predict(run: Path) -> None:
    code, line = refusal("predict", run)
    assert code == 1
    assert "needs at least 8 usable runs, got 1" in line


def test_a_report_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, line = refusal("report", run, "--out", tmp_path / "file" / "page.html")
    assert code == 1
    assert "page.html" in line


def test_nothing_is_printed_when_a_later_run_is_wrong(run: Path, tmp_path: Path) -> None:
    assert call("replay", "stopping", run, tmp_path / "nothing").stdout == ""
    assert call("analyze", run, tmp_path / "nothing").stdout == ""


def test_nobody_answers_at_the_scheduler(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CONNECT_SECONDS", 0.5)
    code, line = refusal("analyze", run, "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2
    assert line == "no Dask scheduler answers at tcp://127.0.0.1:1: start one, or leave --scheduler out"


CLUSTER = """
import sys
from click.testing import CliRunner
from distributed import LocalCluster
from dynome_recorder.cli import main
from dynome_recorder.storage.format import seal

if __name__ == "__main__":
    options = {"threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    for workers in (0, 1):
        with LocalCluster(n_workers=workers, **options) as cluster:
            command = ["analyze", sys.argv[1], "--refresh", "--json", "--scheduler", cluster.scheduler_address]
            print(CliRunner().invoke(main, command).stdout, end="")
"""


def test_analyze_on_a_cluster(run: Path, tmp_path: Path) -> None:
    """In a process of its own: event loops of a cluster outlive it and would disturb other tests."""
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, str(script), str(run)], capture_output=True, text=True, timeout=120, check=True
    )
    refused, computed = (json.loads(line) for line in done.stdout.splitlines())
    assert "has no workers" in refused["error"]["message"]
    assert computed == answer("analyze", run)


def test_choices_and_defaults_are_those_of_the_functions() -> None:
    """Spelled out in the commands, because asking the functions would import heavy libraries for every --help."""
    assert tuple(SIGNALS) == commands.RULES
    assert get_args(Distance) == commands.DISTANCES
    assert get_args(DatasetName) == commands.DATASETS
    assert get_args(Estimator) == commands.ESTIMATORS
    fields = {field.name: field.default for field in dataclasses.fields(LearningRateRule)}
    assert {name for name, *_ in commands.CONSTANTS} == set(fields) - {"base_rate"}
    assert all(fields[name] == default for name, _, default, _ in commands.CONSTANTS if name != "horizon")


def test_every_command_has_help() -> None:
    for command in ("analyze", "replay", "replay stopping", "replay lr", "predict", "report", "demo"):
        result = call(*command.split(), "--help")
        assert result.exit_code == 0
        assert f"Usage: main {command}" in result.stdout


def test_a_demo_without_its_extras_names_all_of_them(monkeypatch):
    """The first command of a newcomer must not ask for one extra after another."""
    monkeypatch.setattr("dynome_analysis.commands.find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        'dynome: error: the demo trains and analyses: pip install "dynome[torch,analysis]"'
    ]
