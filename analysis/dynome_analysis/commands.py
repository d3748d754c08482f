"""The commands that the analysis adds to ``dynome``: thin shells over functions of this package.

Rule to keep: this module loads for every command line that is not the recorder's own, so heavy libraries are imported
inside the commands. Results are complete before anything is printed: a command prints all of it or an error.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynome_recorder.console import json_option, show, show_progress
from dynome_recorder.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynome_analysis.recording import Recording, Stream

__all__ = ["register"]

RULES = ("top", "top-births", "top-both", "frobenius", "fp", "vl", "oracle")
DISTANCES = ("top", "births", "deaths", "wasserstein")
DATASETS = ("digits", "mnist", "fashion-mnist")
MEASURES = ("pearson", "spearman", "cosine", "partial")
ENGINES = ("auto", "dynome", "giotto-ph", "ripser", "gudhi", "none")
CONNECT_SECONDS = 10.0
ESTIMATORS = ("ridge", "svr", "random_forest", "hist_gradient_boosting", "strongest")

# The constants of the learning-rate rule, all [O]; a test holds the defaults equal to the rule's own.
CONSTANTS: tuple[tuple[str, type, float | None, str], ...] = (
    ("horizon", float, None, "T0 of the envelope, in decisions; by default a fifth of those recorded."),
    ("alpha", float, 0.6, "Decay of the envelope, in (1/2, 1]."),
    ("window", int, 10, "Previous distances that the median sees."),
    ("warm_up", int, None, "Distances before the gate opens; by default half a window."),
    ("guard", float, 0.01, "Smallest spread, as a fraction of the median."),
    ("unstable_on", float, 2.0, "The gate becomes UNSTABLE above this z."),
    ("unstable_off", float, 1.0, "... and NEUTRAL again below this one."),
    ("stable_on", float, -1.0, "The gate becomes STABLE below this z."),
    ("stable_off", float, -0.5, "... and NEUTRAL again above this one."),
    ("down", float, 0.6, "Factor on the gain while UNSTABLE."),
    ("up", float, 1.1, "Factor on the gain while STABLE."),
    ("gain_minimum", float, 0.1, "Lower bound of the gain."),
    ("gain_maximum", float, 3.0, "Upper bound of the gain."),
)

runs_argument = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
sites_option = click.option(
    "--sites", multiple=True, metavar="PATTERN", help="Sites of the connectomes, as names or globs; repeatable. All."
)
patience_option = click.option("--patience", type=int, default=5, show_default=True, help="Worse epochs that stop.")


def register(group: click.Group) -> None:
    """Add the commands of the analysis to a click group."""
    for command in (analyze, replay, predict, report, demo):
        group.add_command(command)


@click.command()
@runs_argument
@sites_option
@click.option(
    "--stream",
    type=click.Choice(["probe", "batches"]),
    default="probe",
    show_default=True,
    help="The probe's fixed samples, or the training batches themselves.",
)
@click.option("--measure", type=click.Choice(MEASURES), default="pearson", show_default=True, help="Of two units.")
@click.option("--units", type=int, metavar="N", help="Take only so many units, drawn from every site.")
@click.option("--until", type=int, metavar="EPOCH", help="Last epoch, e.g. the last before a run diverged.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="What computes H1.")
@click.option(
    "--deaths",
    type=click.Choice(["auto", "exact", "histogram"]),
    default="auto",
    show_default=True,
    help="Keep deaths one by one, or counted in bins of known error.",
)
@click.option(
    "--route",
    type=click.Choice(["auto", "dense", "streaming"]),
    default="auto",
    show_default=True,
    help="Hold a connectome whole, or make it tile by tile; by memory.",
)
@click.option("--memory-limit", metavar="BYTES", help="Of one snapshot, such as 8GB. By default half of what is free.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of halves of the probe and drawn units.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Compute on the Dask cluster of this scheduler.")
@click.option("--workers", type=int, metavar="N", help="Compute in so many processes of this machine.")
@click.option("--refresh", is_flag=True, help="Compute anew even where there is a cached result.")
@json_option
def analyze(
    runs: tuple[Path, ...],
    sites: tuple[str, ...],
    stream: Any,
    memory_limit: str | None,
    scheduler: str | None,
    workers: int | None,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute connectomes, births and deaths, H1 and reconfiguration, cached beside each recording.

    What is interrupted goes on where it was, and a recording that has grown is analysed where it has.
    """
    from dynome_analysis import tables
    from dynome_analysis.pipeline.analysis import analyze as analyze_recording

    recordings = _open(runs, stream)
    limit = _bytes(memory_limit)
    with _cluster(scheduler, workers), show_progress() as progress:
        results = [
            analyze_recording(one, sites=sites or None, memory_limit=limit, progress=progress, **options)
            for one in recordings
        ]
    document = {"recordings": [tables.analysis_document(*pair) for pair in zip(recordings, results)]}
    show(document, as_json=as_json, table=lambda: tables.analysis_table(document))


@click.group(no_args_is_help=False)
def replay() -> None:
    """Replay decision rules over recordings: what would each have decided?"""


@replay.command("stopping")
@runs_argument
@click.option(
    "--rule", "rules", multiple=True, type=click.Choice(RULES), help="Repeatable. By default top, fp, vl, oracle."
)
@patience_option
@click.option("--burn-in", type=int, default=1, show_default=True, help="First epoch that counts.")
@click.option("--test-metric", default="test_accuracy", show_default=True, help="What the network is worth.")
@click.option("--no-test-metric", is_flag=True, help="There is none: no oracle then.")
@click.option("--test-mode", type=click.Choice(["min", "max"]), default="max", show_default=True)
@click.option("--validation-metric", default="val_loss", show_default=True, help="Signal of the rule vl.")
@click.option("--validation-mode", type=click.Choice(["min", "max"]), default="min", show_default=True)
@sites_option
@json_option
def replay_stopping_command(
    runs: tuple[Path, ...],
    rules: tuple[str, ...],
    patience: int,
    burn_in: int,
    test_metric: str,
    test_mode: Any,
    validation_metric: str,
    validation_mode: Any,
    sites: tuple[str, ...],
    *,
    no_test_metric: bool,
    as_json: bool,
) -> None:
    """Say where each rule would have stopped, and what the network was worth there."""
    from dynome_analysis import tables
    from dynome_analysis.replay.replay import DEFAULT_RULES, replay_stopping

    recordings = _open(runs)
    with show_progress() as progress:
        results = [
            replay_stopping(
                one,
                rules=rules or [rule for rule in DEFAULT_RULES if rule != "oracle" or not no_test_metric],
                patience=patience,
                burn_in=burn_in,
                test_metric=None if no_test_metric else test_metric,
                validation_metric=validation_metric,
                test_mode=test_mode,
                validation_mode=validation_mode,
                sites=sites or None,
                progress=progress,
            )
            for one in recordings
        ]
    document = {"recordings": [tables.stopping_document(*pair) for pair in zip(recordings, results)]}
    show(document, as_json=as_json, table=lambda: tables.stopping_tables(document))


def _constant_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per constant of the learning-rate rule."""
    for name, kind, default, text in reversed(CONSTANTS):
        shown = default is not None
        command = click.option(
            f"--{name.replace('_', '-')}", type=kind, default=default, show_default=shown, help=text
        )(command)
    return command


@replay.command("lr")
@runs_argument
@click.option("--distance", type=click.Choice(DISTANCES), default="top", show_default=True)
@click.option("--base-rate", type=float, help="lr0; by default the rate that the run was recorded with.")
@_constant_options
@sites_option
@json_option
def replay_learning_rate_command(
    runs: tuple[Path, ...],
    distance: Any,
    base_rate: float | None,
    sites: tuple[str, ...],
    *,
    as_json: bool,
    **constants: Any,
) -> None:
    """Say which learning rates the connectome-guided rule would have chosen.

    Open loop: the run was trained with its own learning rates, not with these.
    """
    from dynome_analysis import tables
    from dynome_analysis.replay.replay import OPEN_LOOP, replay_learning_rate

    recordings = _open(runs)
    with show_progress() as progress:
        results = [
            replay_learning_rate(
                one, distance=distance, base_rate=base_rate, sites=sites or None, progress=progress, **constants
            )
            for one in recordings
        ]
    document = {
        "loop": "open",
        "note": OPEN_LOOP,
        "recordings": [tables.learning_rate_document(*pair) for pair in zip(recordings, results)],
    }
    show(document, as_json=as_json, table=lambda: tables.learning_rate_tables(document))


@click.command()
@runs_argument
@click.option("--epochs", type=int, default=5, show_default=True, help="Predict from epochs 1 to this one.")
@click.option(
    "--target", default="test_accuracy", show_default=True, help="Epoch metric whose last value is predicted."
)
@click.option("--estimator", type=click.Choice(ESTIMATORS), default="ridge", show_default=True)
@click.option("--per-layer", is_flag=True, help="Statistics per layer; all runs need the same layers.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of splits, models and bootstrap.")
@json_option
def predict(
    runs: tuple[Path, ...], epochs: int, target: str, estimator: Any, seed: int, *, per_layer: bool, as_json: bool
) -> None:
    """Predict final performance from the first epochs, by models that have not seen the run."""
    from dynome_analysis import tables
    from dynome_analysis.prediction import predict_performance

    with show_progress() as progress:
        prediction = predict_performance(
            _open(runs),
            epochs=epochs,
            target=target,
            estimator=estimator,
            per_layer=per_layer,
            seed=seed,
            progress=progress,
        )
    document = tables.prediction_document(prediction)
    show(document, as_json=as_json, table=lambda: tables.prediction_tables(document))


@click.command()
@runs_argument
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, metavar="FILE")
@patience_option
@json_option
def report(runs: tuple[Path, ...], out: Path, patience: int, *, as_json: bool) -> None:
    """Write one self-contained HTML file about recordings."""
    from rich.text import Text

    from dynome_analysis.report import write_report

    recordings = _open(runs)
    with show_progress() as progress:
        path = write_report(recordings, out, patience=patience, progress=progress)
    document = {"report": path, "recordings": [{"path": one.path, "id": one.id} for one in recordings]}
    show(document, as_json=as_json, table=lambda: Text(f"report: {path}"))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True, metavar="DIR")
@click.option("--quick", is_flag=True, help="A smaller version of the same.")
@click.option("--dataset", type=click.Choice(DATASETS), default="digits", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set's files are.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--fresh", is_flag=True, help="Start over instead of going on with what is in the folder.")
@json_option
def demo(out: Path, dataset: str, data_dir: Path | None, seed: int, *, quick: bool, fresh: bool, as_json: bool) -> None:
    """Train on real data, record, analyse, replay, predict and report: the whole way."""
    _check_demo_extras()
    from dynome_analysis import tables
    from dynome_analysis.demo import run_demo

    with show_progress() as progress:
        summary = run_demo(
            out,
            dataset=dataset,
            quick=quick,
            seed=seed,
            data_dir=data_dir,
            fresh=fresh,
            progress=progress,
            tell=lambda line: click.echo(line, err=True),
        )
    document = {**summary, "summary": out / "summary.json", "report": out / "report.html"}
    show(document, as_json=as_json, table=lambda: tables.demo_table(document))


def _check_demo_extras() -> None:
    """Name everything that is missing at once: the demo is the first thing a newcomer calls."""
    needed = {"torch": "torch", "xarray": "analysis"}
    missing = [extra for module, extra in needed.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f'the demo trains and analyses: pip install "dynome[{",".join(missing)}]"')


def _open(runs: tuple[Path, ...], stream: Stream = "probe") -> list[Recording]:
    """Open all recordings before any work starts, so that a wrong path is told at once."""
    from dynome_analysis.recording import open_recording

    return [open_recording(run, stream=stream) for run in runs]


def _bytes(text: str | None) -> int | None:
    """Return a size such as 8GB or 500MiB in bytes."""
    if text is None:
        return None
    from dask.utils import parse_bytes

    from dynome_recorder.errors import InvalidArgumentError

    try:
        size = int(parse_bytes(text))
    except ValueError:
        size = 0
    if size <= 0:
        raise InvalidArgumentError(f"--memory-limit must be a size such as 8GB or 500MiB; got {text!r}")
    return size


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[None]:
    """Make the cluster at a scheduler's address, or one of this machine's processes, the one that computes.

    Raises
    ------
    InvalidArgumentError
        Both are asked for, less than one process, not an address, nobody answers there, or no worker is connected.
    """
    if address is None and workers is None:
        yield
        return
    from distributed import Client, LocalCluster

    from dynome_recorder.errors import InvalidArgumentError

    if address is None or workers is not None:
        if address is not None:
            raise InvalidArgumentError("--scheduler and --workers are two ways to compute: name one of them")
        if workers is None or workers < 1:
            raise InvalidArgumentError(f"--workers must be at least 1; got {workers}")
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            yield
        return
    if not re.fullmatch(r"(tcp|tls|ws|wss)://[^/\s]+:\d+", address):
        raise InvalidArgumentError(f"--scheduler must look like tcp://HOST:PORT; got {address!r}")
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise InvalidArgumentError(
            f"no Dask scheduler answers at {address}: start one, or leave --scheduler out"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise InvalidArgumentError(
                f"the Dask scheduler at {address} has no workers: start some with 'dask worker {address}'"
            )
        yield
