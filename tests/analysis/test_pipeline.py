"""analyze() equals the single functions, is computed once, and never believes a damaged file."""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from recordings import describe, moments

import dynome_analysis as dya
from dynome_analysis import cache, pipeline
from dynome_analysis.cache import CacheWarning
from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, InvalidDataError
from dynome_recorder.writer import Moment, RecordingWriter

SITES = {"hidden1": 12, "hidden2": 8}
MakeRecording = Callable[..., Path]


@pytest.fixture
def path(make_recording: MakeRecording) -> Path:
    return make_recording(epochs=3, dead_units=1)


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the numbers are computed rather than read."""
    done: list[int] = []
    original = pipeline._analyze

    def counted(*args, **options):
        done.append(1)
        return original(*args, **options)

    monkeypatch.setattr(pipeline, "_analyze", counted)
    return done


def results(path: Path) -> list[Path]:
    return sorted(folder for folder in (path / "analysis.zarr").iterdir() if folder.is_dir())


def test_it_holds_what_the_single_functions_say(path: Path) -> None:
    recording = dya.open_recording(path)
    found = dya.analyze(recording)
    connectomes = dya.connectomes(recording).compute()
    homology = dya.graph_homology(connectomes)
    diagrams = dya.rips(connectomes, dimensions=[1])
    xr.testing.assert_equal(found[["births", "deaths", "dead_units"]], homology)
    np.testing.assert_array_equal(found["h1_birth"], diagrams["birth"])
    np.testing.assert_array_equal(found["h1_death"], diagrams["death"])
    lifetimes = (diagrams["death"] - diagrams["birth"]).to_numpy()
    np.testing.assert_allclose(found["functional_persistence"], np.sqrt(np.nansum(lifetimes**2, axis=1)))
    for metric, signature in {"top": homology, "births": homology, "deaths": homology, "wasserstein": diagrams}.items():
        expected = dya.reconfiguration(signature, metric=metric)
        np.testing.assert_allclose(found[f"reconfiguration_{metric}"], expected, rtol=1e-12)
        again = dya.reconfiguration(found, metric=metric)
        np.testing.assert_allclose(again, expected, rtol=1e-12)
    np.testing.assert_allclose(
        found["reconfiguration_frobenius"], dya.reconfiguration(connectomes, metric="frobenius"), rtol=1e-12
    )
    np.testing.assert_allclose(found["distance_matrix"], dya.distance_matrix(homology), rtol=1e-12)
    floor = dya.noise_floor(recording)
    np.testing.assert_allclose(found["noise_floor_two_halves"], floor["two_halves"], rtol=1e-12)
    np.testing.assert_allclose(found["noise_floor_paired"], floor["paired"], rtol=1e-12)
    upper = connectomes.to_numpy()[:, *np.triu_indices(20, 1)]
    np.testing.assert_allclose(found["mean_absolute_correlation"], upper.mean(axis=1, dtype=float))
    assert found.attrs["units"] == 20
    assert found.attrs["samples"] == 40
    assert json.loads(found.attrs["sites"]) == ["hidden1", "hidden2"]
    assert found.attrs["recording"] == recording.id
    assert found.coords["epoch"].to_numpy().tolist() == [0, 1, 2, 3]


def test_a_second_call_reads_the_same(path: Path, computations: list[int]) -> None:
    reports: list[tuple[str, int, int]] = []
    first = dya.analyze(dya.open_recording(path), progress=lambda *report: reports.append(report))
    assert reports[-1][1] == reports[-1][2] > 4
    second = dya.analyze(dya.open_recording(path))
    xr.testing.assert_identical(first, second)
    assert {name: array.dtype for name, array in first.items()} == {name: array.dtype for name, array in second.items()}
    assert len(computations) == 1
    dya.analyze(dya.open_recording(path), refresh=True)
    assert len(computations) == 2
    assert len(results(path)) == 1
    with xr.open_dataset(results(path)[0], engine="zarr", consolidated=False) as stored:
        np.testing.assert_array_equal(stored["deaths"], first["deaths"])


def test_other_parameters_are_kept_side_by_side(path: Path, computations: list[int]) -> None:
    recording = dya.open_recording(path)
    dya.analyze(recording)
    chosen = dya.analyze(recording, sites="hidden1")
    assert chosen.attrs["units"] == 12
    assert dya.analyze(recording, seed=1)["noise_floor_paired"][1] != dya.analyze(recording)["noise_floor_paired"][1]
    assert len(computations) == len(results(path)) == 3


def test_new_snapshots_and_new_code_make_results_stale(
    path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dya.analyze(dya.open_recording(path))
    with RecordingWriter.open(path, describe(SITES, samples=40)) as writer:
        writer.commit(moments(SITES, samples=40, epochs=4)[4])
    assert dya.analyze(dya.open_recording(path)).sizes["snapshot"] == 5
    assert len(results(path)) == 1
    monkeypatch.setattr(pipeline, "code_version", lambda: "other")
    dya.analyze(dya.open_recording(path))
    assert len(results(path)) == 1
    assert len(computations) == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "metadata", "no metadata"])
def test_a_damaged_result_is_computed_anew_with_a_warning(path: Path, computations: list[int], damage: str) -> None:
    recording = dya.open_recording(path)
    first = dya.analyze(recording)
    folder = results(path)[0]
    chunk = next(file for file in sorted((folder / "deaths").rglob("*")) if file.is_file() and file.name != "zarr.json")
    data = chunk.read_bytes()
    if damage == "flip":
        chunk.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "truncate":
        chunk.write_bytes(data[:-1])
    elif damage == "remove":
        chunk.unlink()
    elif damage == "add":
        (folder / "deaths" / "more").write_bytes(b"x")
    elif damage == "metadata":
        text = (folder / "zarr.json").read_text()
        (folder / "zarr.json").write_text(text.replace('"units": 20', '"units": 21'))
    else:
        (folder / "zarr.json").unlink()
    with pytest.warns(CacheWarning, match=rf"{folder} is damaged .*computing it anew"):
        second = dya.analyze(recording)
    xr.testing.assert_identical(first, second)
    xr.testing.assert_identical(first, dya.analyze(recording))
    assert len(computations) == 2


def test_a_folder_that_cannot_be_written_gives_results_uncached(
    path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self, *args, **options):
        raise PermissionError("read-only")

    monkeypatch.setattr(xr.Dataset, "to_zarr", refuse)
    with caplog.at_level(logging.INFO, "dynome_analysis.cache"):
        found = dya.analyze(dya.open_recording(path))
    assert "not caching" in caplog.text
    assert found.sizes["snapshot"] == 4
    dya.analyze(dya.open_recording(path))
    assert len(computations) == 2


def test_a_damaged_root_does_not_end_caching(path: Path, computations: list[int]) -> None:
    dya.analyze(dya.open_recording(path))
    (path / "analysis.zarr" / "zarr.json").write_text("{")
    dya.analyze(dya.open_recording(path), refresh=True)
    dya.analyze(dya.open_recording(path))
    assert len(computations) == 2
    assert xr.open_dataset(path / "analysis.zarr", engine="zarr", consolidated=False).sizes == {}


def test_an_interrupted_write_leaves_nothing_under_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_seal", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dya.analyze(dya.open_recording(path))
    assert results(path) == []
    (partial,) = path.glob("analysis.zarr.*.partial")
    dya.analyze(dya.open_recording(path))
    assert partial.exists(), "another process may still be writing it"
    old = time.time() - 2 * cache.STALE_SECONDS
    os.utime(partial, (old, old))
    dya.analyze(dya.open_recording(path), refresh=True)
    assert not partial.exists()


def test_a_cached_result_does_not_hide_a_damaged_recording(path: Path) -> None:
    recording = dya.open_recording(path)
    dya.analyze(recording)
    folder = path / "store.zarr" / "probe" / "sites" / "hidden1"
    chunk = next(file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CorruptRecordingError, match=chunk.name):
        dya.analyze(recording)


def test_one_snapshot_has_a_signature_and_no_changes(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=0))
    for found in (dya.analyze(recording), dya.analyze(recording)):
        assert found["births"].shape == (1, 19)
        assert np.isnan(found["reconfiguration_top"]).all()
        assert np.isnan(found["noise_floor_paired"]).all()
        assert found["distance_matrix"].to_numpy().tolist() == [[0]]


@pytest.mark.parametrize(("units", "deaths"), [(1, 0), (2, 0), (3, 1)])
def test_few_units_and_one_sample(make_recording: MakeRecording, units: int, deaths: int) -> None:
    recording = dya.open_recording(make_recording(epochs=2, samples=1, sites={"only": units}))
    for found in (dya.analyze(recording), dya.analyze(recording)):
        assert found["births"].shape == (3, units - 1)
        assert found["deaths"].shape == (3, deaths)
        assert found["h1_birth"].shape == (3, 0)
        assert found["dead_units"].to_numpy().tolist() == [units] * 3
        assert not found["functional_persistence"].any()
        assert not found["reconfiguration_wasserstein"][1:].any()
        assert np.isnan(found["mean_absolute_correlation"]).all() == (units == 1)
        assert np.isnan(found["noise_floor_two_halves"]).all()


def test_the_first_epoch_of_a_diverged_run_is_named(make_recording: MakeRecording) -> None:
    """Snapshots are computed side by side; whichever fails first, the message is about the first in time."""

    def diverge(moment: Moment) -> Moment:
        broken = {site: np.full_like(values, np.nan) for site, values in (moment.probe or {}).items()}
        return replace(moment, probe=broken) if moment.epoch >= 3 else moment

    recording = dya.open_recording(make_recording(epochs=12, change=diverge))
    for _ in range(3):
        with pytest.raises(InvalidDataError, match=r"at epoch 3 \(step 9\)"):
            dya.analyze(recording)


def test_a_pattern_that_matches_nothing_is_refused_before_any_work(path: Path, computations: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="matches no site"):
        dya.analyze(dya.open_recording(path), sites="conv*")
    assert computations == []


def test_no_warning_comes_from_a_plain_call(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dya.analyze(dya.open_recording(path))


def test_the_code_version_names_every_source_of_numbers() -> None:
    assert pipeline.code_version() == pipeline.code_version()
    folder = Path(pipeline.__file__).parent
    assert all((folder / name).exists() for name in pipeline.SOURCES)
