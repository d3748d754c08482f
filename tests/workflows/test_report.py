"""The report says everything it should, says what is missing, and takes names from a recording for text only."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from recordings import write_recording

from dynome_analysis.pipeline import analysis
from dynome_analysis.pipeline.analysis import analyze
from dynome_analysis.prediction import predict_performance
from dynome_analysis.recording import open_recording
from dynome_analysis.replay import replay_learning_rate
from dynome_analysis.report import write_report
from dynome_analysis.report.document import describe, number, percent, plural
from dynome_analysis.report.evidence import gather
from dynome_analysis.report.figures.axes import scale_for, time_axis
from dynome_analysis.report.figures.stopping import metric_names
from dynome_analysis.report.figures.style import DARK, LIGHT
from dynome_analysis.report.figures.topology import QUANTILES, distance_matrix_figure, spread
from dynome_recorder.errors import (
    CorruptRecordingError,
    InvalidArgumentError,
    InvalidDataError,
    RecordingNotFoundError,
    StorageError,
)
from dynome_recorder.storage.writer import Moment

SECTIONS = (
    "What was recorded",
    "Where to stop",
    "How much the network reconfigured",
    "Births, deaths and loops",
    "Every epoch against every other",
    "Which learning rate the connectome would have chosen",
    "Dead units",
    "Predicting the end from the beginning",
    "Methods and versions",
)
HOSTILE = "<script>alert(1)</script>"


def html_of(recordings: object, folder: Path, **options: object) -> str:
    path = write_report(recordings, folder / "report.html", **options)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def drawings_of(html: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="drawings">(.*?)</script>', html, re.S)
    assert found is not None
    document: dict[str, object] = json.loads(found[1])
    return document


def page_of(html: str) -> str:
    """The page without scripts and styles: what a reader sees."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on a recording that has everything, with a prediction."""
    folder = tmp_path_factory.mktemp("report")
    main = write_recording(folder / "main", epochs=12, dead_units=1, hyperparameters={"learning_rate": 0.05})
    runs = [
        write_recording(
            folder / f"run-{seed}", seed=seed, samples=20, epochs=4, hyperparameters={"lr": 0.1 * (1 + seed)}
        )
        for seed in range(8)
    ]
    return html_of([main], folder, prediction=predict_performance(runs, epochs=2), patience=3)


def test_every_section_is_there_with_its_figures(full_report: str) -> None:
    page = page_of(full_report)
    assert re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page) == list(SECTIONS)
    assert "Not shown" not in page
    items = drawings_of(full_report)["items"]
    assert isinstance(items, list)
    assert page.count("<figure") == len(items) == 16
    for rule in ("TOP", "FP", "VL"):
        assert re.search(rf"<li>{rule} would (not )?have stopped", page)
    assert "The best test accuracy" in page
    assert "patience of 3 epochs" in page
    assert "Open loop" in page
    for mark in ("[P", "[G", "[O"):
        assert mark in page


def test_every_figure_has_a_caption_and_words_for_those_who_cannot_see_it(full_report: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page_of(full_report), re.S)
    for figure in figures:
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.S)
        label = re.search(r'aria-label="([^"]*)"', figure)
        assert caption and len(caption[1]) > 20
        assert label and re.search(r"\d", label[1])


def test_the_file_is_complete_and_small(full_report: str) -> None:
    assert len(full_report.encode()) < 5_000_000
    own = re.sub(r"/\* BEGIN bokeh.*?/\* END bokeh[^*]*\*/", "", full_report, flags=re.S)
    assert len(own) < len(full_report)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", own)
    assert "default-src 'none'" in own


def test_every_colour_of_a_figure_has_a_dark_partner(full_report: str) -> None:
    document = drawings_of(full_report)
    assert document["dark"] == {LIGHT[name]: DARK[name] for name in LIGHT}
    scales = re.compile(r'"palette":\{"type":"(?:map|ndarray)".*?\}|"palette":\[.*?\]')
    text = scales.sub("", json.dumps(document["items"], separators=(",", ":")))
    used = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert used
    assert used <= set(LIGHT.values())


def test_a_recording_without_metrics_says_what_is_missing(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    page = page_of(html_of([make_recording(metrics=False)], tmp_path))
    missing = re.findall(r'<p class="missing" role="note">Not shown: (.*?)</p>', page)
    assert any(line.startswith("VL: ") and "val_loss" in line for line in missing)
    assert any("no test accuracy was recorded" in line for line in missing)
    assert any("loss or accuracy" in line for line in missing)
    assert any("dynome predict" in line for line in missing)
    assert re.search(r"<li>TOP would", page)
    assert re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page) == list(SECTIONS)


def test_a_single_snapshot_has_a_signature_but_no_change(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    page = page_of(html_of([make_recording(epochs=0)], tmp_path))
    assert page.count("a change needs two: record more epochs") == 2
    assert "Births (components)" in page
    assert "TOP: " in page


def test_activations_that_are_no_numbers_are_named(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    def break_one(moment: Moment) -> Moment:
        if moment.epoch != 3 or moment.probe is None:
            return moment
        broken = {name: np.full_like(values, np.nan) for name, values in moment.probe.items()}
        return dataclasses.replace(moment, probe=broken)

    page = page_of(html_of([make_recording(change=break_one)], tmp_path))
    assert re.search(r"Not shown: [^<]*epoch 3", page)
    assert re.search(r"<li>VL would", page)
    assert not re.search(r"<li>TOP would", page)


def test_names_from_a_recording_stay_text(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    def rename(moment: Moment) -> Moment:
        hostile = {f"{HOSTILE}_loss": 1.0, "$$\\frac{1}{2}$$_accuracy": 0.5}
        return dataclasses.replace(moment, epoch_metrics={**moment.epoch_metrics, **hostile})

    path = make_recording(
        tmp_path / "</title><script>alert(2)</script>",
        sites={HOSTILE: 6, "b": 5},
        hyperparameters={"</script><script>alert(3)</script>": "<img src=x onerror=alert(4)>"},
        change=rename,
    )
    runs = [make_recording(tmp_path / f"{HOSTILE.replace('/', '-')}{seed}", seed=seed, samples=20) for seed in range(8)]
    html = html_of([path], tmp_path, prediction=predict_performance(runs, epochs=2))
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<img" not in page_of(html)
    assert "<" not in json.dumps(drawings_of(html)["dark"])
    found = re.search(r'id="drawings">(.*?)</script>', html, re.S)
    assert found is not None
    assert "<" not in found[1]
    # In the text of a canvas it would be read as mathematics, whose library would have to be fetched.
    assert "$$" not in found[1]


def test_several_recordings_get_a_chapter_each(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    paths = [make_recording(tmp_path / name, seed=seed, epochs=3) for seed, name in enumerate(("first", "second"))]
    page = page_of(html_of([open_recording(paths[0]), str(paths[1])], tmp_path, title="Two runs"))
    assert re.findall(r'<h2 class="chapter">(.*?)</h2>', page) == ["first", "second", "Prediction and methods"]
    anchors = re.findall(r' id="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(anchors)
    assert "<h1>Two runs</h1>" in page
    assert "2 recordings" in page


def test_a_diverged_run_does_not_end_with_the_last_accuracy_that_was_a_number(
    make_recording: Callable[..., Path], tmp_path: Path
) -> None:
    def diverge(moment: Moment) -> Moment:
        return replace(moment, epoch_metrics={"test_accuracy": math.nan if moment.epoch > 2 else 0.321 * moment.epoch})

    page = page_of(html_of([make_recording(epochs=5, change=diverge)], tmp_path))
    facts, findings = page.split("In short")[0], page.split("In short")[1]
    assert "64.2" not in facts
    assert re.search(
        r"The best test accuracy, 64\.2\s%, was reached after epoch 2; at the end it was not a number", findings
    )


def test_a_recording_given_as_the_folder_one_stands_in_has_a_name(
    make_recording: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_recording(tmp_path / "run-seven", epochs=2))
    assert "Recording run-seven;" in page_of(html_of([Path()], tmp_path))


def test_what_cannot_be_read_or_written_is_told(make_recording: Callable[..., Path], tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "run", epochs=2)
    with pytest.raises(InvalidArgumentError, match="at least one recording"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(RecordingNotFoundError):
        write_report([tmp_path / "nothing"], tmp_path / "report.html")
    with pytest.raises(StorageError, match=r"cannot be written \(Is a directory\): .*name another place with --out"):
        write_report([recording], tmp_path / "run")
    assert not (tmp_path / "run.partial").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written \((Not a directory|File exists)\)"):
        write_report([recording], tmp_path / "file" / "report.html")
    chunk = max((recording / "store.zarr" / "probe" / "sites").rglob("c.*"), key=lambda path: path.stat().st_size)
    chunk.unlink()
    with pytest.raises(CorruptRecordingError):
        write_report([recording], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_time_is_counted_in_steps_where_epochs_repeat() -> None:
    snapshots = xr.Dataset(coords={"epoch": ("snapshot", [0, 0, 1]), "step": ("snapshot", [0, 5, 10])})
    time, label = time_axis(snapshots)
    assert (time.tolist(), label) == ([0, 5, 10], "optimizer step")
    time, label = time_axis(snapshots.isel(snapshot=[0, 2]))
    assert (time.tolist(), label) == ([0, 1], "epoch")


def test_metrics_are_ordered_and_empty_ones_left_out() -> None:
    names = ("test_loss", "loss", "val_loss", "train_loss", "gone_loss", "test_accuracy")
    values = {name: ("epoch", [np.nan if name == "gone_loss" else 1.0]) for name in names}
    metrics = xr.Dataset(values, coords={"epoch": [1]})
    assert metric_names(metrics, "loss") == ["train_loss", "val_loss", "test_loss", "loss"]
    assert metric_names(metrics, "accuracy") == ["test_accuracy"]


def test_a_logarithmic_scale_needs_positive_values() -> None:
    assert scale_for(np.array([np.nan, 1.0, 0.1])) == "log"
    assert scale_for(np.array([0.0, 1.0])) == "auto"
    assert scale_for(np.array([np.nan])) == "auto"


def test_a_streamed_analysis_says_that_there_are_no_loops(
    make_recording: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = analyze(open_recording(make_recording(epochs=4)))
    monkeypatch.setattr(analysis, "worker_memory", lambda: 1000)
    path = make_recording(epochs=4)
    page = page_of(html_of([path], tmp_path))
    assert page.count("H1 is left out of 5 of 5 snapshots: it needs the whole connectome") == 2
    assert "rule &#39;fp&#39; needs H1 of every snapshot" in page
    assert "171 deaths per snapshot" in page
    counted = analyze(open_recording(path))
    np.testing.assert_allclose(spread(counted, "births"), spread(exact, "births"), atol=1e-5)
    # numpy's quantiles lie between two weights by default, those of counts on one.
    deaths = np.quantile(exact["deaths"].values, QUANTILES, axis=1, method="inverted_cdf")
    np.testing.assert_allclose(spread(counted, "deaths"), deaths, atol=2e-5)
    with pytest.raises(InvalidDataError, match=r"distance 'wasserstein' needs H1 .*; it is left out of 5 of 5"):
        replay_learning_rate(open_recording(path), distance="wasserstein")


def test_the_matrix_of_equal_snapshots_is_drawn_too() -> None:
    coords = {"epoch": ("snapshot", np.arange(60)), "step": ("snapshot", np.arange(60))}
    zeros = xr.Dataset({"distance_matrix": (("snapshot", "snapshot_"), np.zeros((60, 60)))}, coords=coords)
    figure = distance_matrix_figure(zeros)
    assert figure.xaxis[0].ticker.ticks == [0, 10, 20, 30, 40, 50]


def test_the_rate_of_the_training_is_shown_where_it_was_recorded(make_recording: Callable[..., Path]) -> None:
    from dynome_analysis.report.sections.learning_rate import _trained_rate

    rate = _trained_rate(gather(open_recording(make_recording(epochs=4)), patience=2))
    assert rate is not None
    assert rate[0].tolist() == [0, 1, 2, 3]
    assert rate[1].tolist() == [0.05] * 4
    assert _trained_rate(gather(open_recording(make_recording(epochs=4, metrics=False)), patience=2)) is None


def test_numbers_read_well() -> None:
    assert [number(value) for value in (None, float("nan"), -0.001234, 123456.0)] == ["–", "–", "−0.00123", "1.23e+05"]
    assert [percent(value) for value in (None, 0.9714)] == ["–", "97.1\N{NO-BREAK SPACE}%"]
    assert [plural(count, "run") for count in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert describe("Loss", np.array([np.nan, 2.0, 0.5, 1.0])) == "Loss: from 2 to 1, lowest 0.5, highest 2."
    assert describe("Loss", np.array([np.nan])) == "Loss: no values."
