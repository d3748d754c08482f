"""analyze() equals the single functions, is computed once, and never believes a damaged file."""

import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from recordings import describe, moments

import dynome_analysis as dya
from dynome_analysis.pipeline import analysis as pipeline
from dynome_analysis.pipeline import cache, comparisons, stretches
from dynome_analysis.pipeline.cache import CacheWarning
from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, InvalidDataError, StorageError
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import Moment, RecordingWriter

SITES = {"hidden1": 12, "hidden2": 8}
MakeRecording = Callable[..., Path]


@pytest.fixture
def path(make_recording: MakeRecording) -> Path:
    return make_recording(epochs=3, dead_units=1)


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the row of every snapshot that is measured rather than read."""
    done: list[int] = []
    original = stretches.measure_snapshot

    def counted(reader, row, plan, before):
        done.append(row)
        return original(reader, row, plan, before)

    monkeypatch.setattr(stretches, "measure_snapshot", counted)
    return done


def results(path: Path) -> list[Path]:
    return sorted(folder for folder in (path / "analysis.zarr").iterdir() if folder.is_dir())


def assert_same_numbers(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Equal but for which recording it was, and the last bits of sums."""
    assert found.sizes == expected.sizes
    for name in found.variables:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=str(name))


def test_it_holds_what_the_single_functions_say(path: Path) -> None:
    recording = dya.open_recording(path)
    found = dya.analyze(recording)
    connectomes = dya.connectomes(recording).compute()
    homology = dya.graph_homology(connectomes)
    diagrams = dya.rips(connectomes, dimensions=[1])
    xr.testing.assert_equal(found[["births", "deaths", "dead_units"]].compute(), homology)
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
    assert [report[1:] for report in reports if report[0] == "analyzing snapshots"] == [(n, 4) for n in range(5)]
    assert reports[-1][1] == reports[-1][2]
    second = dya.analyze(dya.open_recording(path))
    xr.testing.assert_identical(first, second)
    assert {name: array.dtype for name, array in first.items()} == {name: array.dtype for name, array in second.items()}
    assert sorted(computations) == [0, 1, 2, 3]
    dya.analyze(dya.open_recording(path), refresh=True)
    assert len(computations) == 8
    xr.testing.assert_identical(first, second)


def test_any_zarr_reader_reads_the_whole(path: Path) -> None:
    found = dya.analyze(dya.open_recording(path))
    (folder,) = results(path)
    with xr.open_dataset(folder, engine="zarr", consolidated=False) as stored:
        for name in found.variables:
            np.testing.assert_array_equal(stored[name], found[name], err_msg=str(name))
    deaths = zarr.open_array(folder / "deaths", mode="r")
    assert deaths.chunks == (1, found.sizes["death"])


def test_large_arrays_are_lazy_with_a_chunk_per_snapshot(path: Path) -> None:
    found = dya.analyze(dya.open_recording(path))
    large = {name for name, array in found.variables.items() if array.chunks is not None}
    assert large == {"births", "deaths", "h1_birth", "h1_death"}
    assert found["deaths"].chunks == ((1, 1, 1, 1), (found.sizes["death"],))
    np.testing.assert_array_equal(found["deaths"].isel(snapshot=2), found["deaths"].compute()[2])


def test_other_parameters_are_kept_side_by_side(path: Path, computations: list[int]) -> None:
    recording = dya.open_recording(path)
    dya.analyze(recording)
    chosen = dya.analyze(recording, sites="hidden1")
    assert chosen.attrs["units"] == 12
    assert dya.analyze(recording, seed=1)["noise_floor_paired"][1] != dya.analyze(recording)["noise_floor_paired"][1]
    assert len(computations) == 12
    assert len(results(path)) == 3


def test_a_recording_that_has_grown_is_analysed_where_it_has(
    path: Path, make_recording: MakeRecording, computations: list[int]
) -> None:
    first = dya.analyze(dya.open_recording(path))
    births = first["births"].values
    more = moments(SITES, samples=40, epochs=6, dead_units=1)
    with RecordingWriter.open(path, describe(SITES, samples=40)) as writer:
        for moment in more[4:]:
            writer.commit(moment)
    computations.clear()
    found = dya.analyze(dya.open_recording(path))
    assert sorted(computations) == [4, 5, 6]
    assert len(results(path)) == 1
    np.testing.assert_array_equal(first["births"], births)  # a result that is still in someone's hands
    whole = dya.analyze(dya.open_recording(make_recording(epochs=6, dead_units=1)))
    assert_same_numbers(found, whole)


def test_a_run_that_went_back_is_analysed_from_there(path: Path, computations: list[int]) -> None:
    """Snapshots that training left behind are no part of the result, those before are kept."""
    before = dya.analyze(dya.open_recording(path))
    with RecordingWriter.open(path, describe(SITES, samples=40)) as writer:
        writer.rewind(1)
        writer.commit(moments(SITES, samples=40, epochs=3, seed=5)[2])
    computations.clear()
    found = dya.analyze(dya.open_recording(path))
    assert found["epoch"].values.tolist() == [0, 1, 2]
    assert computations == [2]
    assert_same_numbers(found, dya.analyze(dya.open_recording(path), refresh=True))
    np.testing.assert_array_equal(before["births"][:2], found["births"][:2])
    with pytest.raises(StorageError, match=r"has changed since it was opened .*snapshot 2 was computed anew"):
        before["births"][2].compute()


def test_after_a_snapshot_was_lost_the_next_is_compared_with_the_one_before(
    path: Path, computations: list[int]
) -> None:
    first = dya.analyze(dya.open_recording(path)).load()
    lost = path / "store.zarr" / next(
        name for name in dya.open_recording(path).manifest.live[1].files if name.startswith("probe/")
    )  # fmt: skip
    lost.write_bytes(b"")
    verify(path, repair=True)
    computations.clear()
    found = dya.analyze(dya.open_recording(path))
    assert found["epoch"].values.tolist() == [0, 2, 3]
    assert sorted(computations) == [1, 2]
    assert found["reconfiguration_top"][1] == first["distance_matrix"][2, 0]
    assert_same_numbers(found, dya.analyze(dya.open_recording(path), refresh=True))


def test_commits_without_a_snapshot_change_nothing(path: Path, computations: list[int]) -> None:
    dya.analyze(dya.open_recording(path))
    with RecordingWriter.open(path, describe(SITES, samples=40)) as writer:
        writer.commit(Moment(epoch=4, step=12, epoch_complete=True, epoch_metrics={"val_loss": 1.0}))
    assert dya.analyze(dya.open_recording(path)).sizes["snapshot"] == 4
    assert len(computations) == 4


def test_new_code_makes_results_stale(path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    dya.analyze(dya.open_recording(path))
    monkeypatch.setattr(pipeline, "code_version", lambda: "other")
    dya.analyze(dya.open_recording(path))
    assert len(results(path)) == 1
    assert len(computations) == 8


@pytest.mark.parametrize(
    ("damage", "computed"),
    [("flip", [2]), ("truncate", [2]), ("remove", [2]), ("record", [2]), ("add", []), ("series", []), ("metadata", []),
     ("no metadata", []), ("array metadata", [])],
)  # fmt: skip
def test_what_is_damaged_is_computed_anew_alone(
    path: Path, computations: list[int], damage: str, computed: list[int]
) -> None:
    recording = dya.open_recording(path)
    first = dya.analyze(recording).load()
    computations.clear()
    folder = results(path)[0]
    chunk = folder / "deaths" / "c" / "2" / "0"
    data = chunk.read_bytes()
    text = (folder / "zarr.json").read_text()
    if damage == "flip":
        chunk.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "truncate":
        chunk.write_bytes(data[:-1])
    elif damage == "remove":
        chunk.unlink()
    elif damage == "record":
        record = folder / "pieces" / "2" / "zarr.json"
        record.write_text(record.read_text().replace('"dead_units": 2', '"dead_units": 1'))
    elif damage == "add":
        (folder / "dead_units" / "more").write_bytes(b"x")
    elif damage == "series":
        (folder / "dead_units" / "c" / "0").write_bytes(b"12345678" * 4)
    elif damage == "metadata":
        (folder / "zarr.json").write_text(text.replace('"units": 20', '"units": 21'))
    elif damage == "no metadata":
        (folder / "zarr.json").unlink()
    else:
        array = folder / "deaths" / "zarr.json"
        array.write_text(array.read_text().replace("172", "171"))
    if damage in ("no metadata", "array metadata"):  # nothing was there, or nothing was believed
        second = dya.analyze(recording)
    else:
        with pytest.warns(CacheWarning, match=rf"{folder} is damaged .*computing .*anew"):
            second = dya.analyze(recording)
    xr.testing.assert_identical(first, second.compute())
    xr.testing.assert_identical(first, dya.analyze(recording).compute())
    assert computations == computed
    with xr.open_dataset(folder, engine="zarr", consolidated=False) as stored:
        np.testing.assert_array_equal(stored["deaths"], first["deaths"])


def test_a_piece_that_is_damaged_while_it_is_in_use_is_refused(path: Path) -> None:
    found = dya.analyze(dya.open_recording(path))
    chunk = results(path)[0] / "births" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert found["births"][0].compute().shape == (19,)
    with pytest.raises(StorageError, match=r"births.* is not what was written.*analyse the recording again"):
        found["births"].compute()


@pytest.mark.parametrize("moment", ["pieces", "note", "finish"])
def test_a_folder_that_cannot_be_written_gives_a_result_elsewhere(
    path: Path,
    computations: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    moment: str,
) -> None:
    expected = dya.analyze(dya.open_recording(path)).load()
    shutil.rmtree(path / "analysis.zarr")
    original = cache._write_text

    def refuse(target: Path, text: str) -> None:
        wanted = {"pieces": "/pieces/", "note": "/notes/", "finish": '"seal"'}[moment]
        inside = f"{target}" if moment != "finish" else text * ("pieces/" not in str(target))
        if target.is_relative_to(path) and wanted in inside and "seal" in text:
            raise PermissionError(30, "Read-only file system")
        original(target, text)

    monkeypatch.setattr(cache, "_write_text", refuse)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with (
        caplog.at_level(logging.INFO, "dynome_analysis.pipeline.analysis"),
        dask.config.set({"temporary-directory": scratch}),
    ):
        found = dya.analyze(dya.open_recording(path))
    assert "not caching analyze: " in caplog.text
    assert "cannot be written (Read-only file system)" in caplog.text
    xr.testing.assert_identical(found.compute(), expected)
    assert len(list(scratch.iterdir())) == 1
    del found
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_nowhere_to_write_is_one_clear_line(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def refuse(target: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_text", refuse)
    with (
        dask.config.set({"temporary-directory": scratch}),
        pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)") as error,
    ):
        dya.analyze(dya.open_recording(path))
    # Even while the error, and with it the frames of the call, is at hand.
    assert error.value.__traceback__ is not None
    assert list(scratch.iterdir()) == []


def test_a_damaged_root_does_not_end_caching(path: Path, computations: list[int]) -> None:
    dya.analyze(dya.open_recording(path))
    (path / "analysis.zarr" / "zarr.json").write_text("{")
    dya.analyze(dya.open_recording(path), refresh=True)
    dya.analyze(dya.open_recording(path))
    assert len(computations) == 8
    assert xr.open_dataset(path / "analysis.zarr", engine="zarr", consolidated=False).sizes == {}


def test_a_failed_snapshot_costs_itself_only(
    path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache.ResultFolder.write_piece

    def interrupt(self, row, *args):
        if row == 2:
            raise KeyboardInterrupt
        original(self, row, *args)

    with monkeypatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(cache.ResultFolder, "write_piece", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dya.analyze(dya.open_recording(path))
    (folder,) = results(path)
    assert "seal" not in json.loads((folder / "zarr.json").read_text())["attributes"]
    dya.analyze(dya.open_recording(path), engine="none")  # of other parameters: leaves it alone
    computations.clear()
    found = dya.analyze(dya.open_recording(path))
    assert sorted(computations) == [2, 3]
    assert_same_numbers(found, dya.analyze(dya.open_recording(path), refresh=True))


def test_a_piece_within_a_stretch_that_someone_else_wrote_is_taken(
    path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a worker was lost: the next snapshot is compared with the piece's, not with the one before it."""
    expected = dya.analyze(dya.open_recording(path)).load()
    (folder,) = results(path)
    for row in (0, 2):
        (folder / "pieces" / str(row) / "zarr.json").unlink()
    monkeypatch.setattr(cache.ResultFolder, "read_pieces", lambda self, identities: {})
    monkeypatch.setattr(stretches, "cut_into_stretches", lambda rows, workers: [(0, 4)])
    computations.clear()
    assert_same_numbers(dya.analyze(dya.open_recording(path)), expected)
    assert computations == [0, 2]


def test_matchings_that_were_made_are_not_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def interrupt(first, second):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return original(first, second)

    original = comparisons.diagram_distance
    monkeypatch.setattr(comparisons, "diagram_distance", interrupt)
    with dask.config.set(scheduler="synchronous"), pytest.raises(KeyboardInterrupt):
        dya.analyze(dya.open_recording(path))
    made.clear()
    found = dya.analyze(dya.open_recording(path))
    assert len(made) == 1
    for note in (results(path)[0] / "notes").glob("*/zarr.json"):
        note.write_text(note.read_text().replace('"wasserstein"', '"wasserstein2"'))
    (results(path)[0] / "zarr.json").unlink()
    made[:] = [1] * 3
    assert_same_numbers(dya.analyze(dya.open_recording(path)), found)
    assert len(made) == 6, "a damaged note is not believed"


def test_kill_minus_nine_costs_what_was_not_written(path: Path, computations: list[int]) -> None:
    """A process that is killed inside its third snapshot leaves two pieces, which are not computed again."""
    code = f"""
import os, signal, dask
import dynome_analysis as dya
from dynome_analysis.pipeline import cache
from dynome_analysis.pipeline import analysis as pipeline
from dynome_analysis.pipeline.aligned import write_aligned

def killed(array, region, values):
    if region[0].start == 2 and "h1_birth" in str(array.store_path):
        os.kill(os.getpid(), signal.SIGKILL)
    write_aligned(array, region, values)

cache.write_aligned = killed
pipeline.code_version = lambda: {pipeline.code_version()!r}  # files may be edited while tests run
with dask.config.set(scheduler="synchronous"):
    dya.analyze(dya.open_recording({str(path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    (folder,) = results(path)
    assert sorted(record.name for record in (folder / "pieces").iterdir() if record.is_dir()) == ["0", "1"]
    assert (folder / "deaths" / "c" / "2" / "0").exists()
    found = dya.analyze(dya.open_recording(path))
    assert sorted(computations) == [2, 3]
    assert_same_numbers(found, dya.analyze(dya.open_recording(path), refresh=True))


def test_two_processes_may_analyse_the_same_at_once(path: Path) -> None:
    """Neither waits for the other, neither fails, and the result is whole."""
    code = f"""
import dynome_analysis as dya
from dynome_analysis.pipeline import analysis
analysis.code_version = lambda: {pipeline.code_version()!r}  # files may be edited while tests run
for _ in range(5):
    found = dya.analyze(dya.open_recording({str(path)!r}), refresh=True)
print(found.sizes["snapshot"])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output) == (0, "4\n"), errors
    assert_same_numbers(dya.analyze(dya.open_recording(path)), dya.analyze(dya.open_recording(path), refresh=True))


def test_what_killed_processes_left_is_swept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dya.analyze(dya.open_recording(path))
    (folder,) = results(path)
    old, new = folder / "deaths" / "c" / "1" / "0.old.partial", folder / "deaths" / "c" / "1" / "0.new.partial"
    elsewhere = path / "analysis.zarr.old.partial"
    elsewhere.mkdir()
    for left in (old, new):
        left.write_bytes(b"")
    long_ago = time.time() - 2 * cache.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    dya.analyze(dya.open_recording(path), refresh=True)
    assert not old.exists()
    assert not elsewhere.exists()
    assert new.exists(), "another process may be writing it now"


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


def test_counted_deaths_are_within_their_bound(path: Path) -> None:
    recording = dya.open_recording(path)
    exact, counted = dya.analyze(recording), dya.analyze(recording, deaths="histogram")
    assert "deaths" not in counted
    bound = counted.attrs["deaths_bound"]
    assert bound == 0.5 / counted.sizes["bin"]
    for row in range(4):
        values = np.repeat(counted["weight"].values, counted["death_counts"].values[row])
        np.testing.assert_allclose(values, exact["deaths"].values[row], atol=bound, rtol=0)
    apart = 2 * bound * np.sqrt(exact.sizes["death"])
    for name in ("reconfiguration_deaths", "reconfiguration_top", "distance_matrix", "noise_floor_two_halves"):
        np.testing.assert_allclose(counted[name], exact[name], atol=2 * apart, rtol=0, err_msg=name)
    for name in ("births", "h1_birth", "dead_units", "reconfiguration_frobenius", "reconfiguration_wasserstein"):
        np.testing.assert_array_equal(counted[name], exact[name], err_msg=name)
    np.testing.assert_allclose(counted["mean_absolute_correlation"], exact["mean_absolute_correlation"], atol=bound)


def test_the_streaming_route_says_the_same_without_loops(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recording = dya.open_recording(path)
    counted = dya.analyze(recording, deaths="histogram")
    with caplog.at_level(logging.INFO, "dynome_analysis.pipeline.analysis"):
        streamed = dya.analyze(recording, memory_limit=1000)
    assert "streaming, without H1 and with deaths counted in bins" in caplog.text
    assert "H1 is left out of 4 of 4 snapshots" in caplog.text
    assert streamed.attrs["route"] == "streaming"
    assert "needs the whole connectome" in streamed.attrs["h1"]
    assert counted.attrs["h1"] == "computed"
    assert streamed["h1_birth"].shape == (4, 0)
    assert np.isnan(streamed["functional_persistence"]).all()
    assert np.isnan(streamed["reconfiguration_wasserstein"]).all()
    apart = 4 * counted.attrs["deaths_bound"] * np.sqrt(172)
    for name in ("reconfiguration_deaths", "distance_matrix", "noise_floor_two_halves", "noise_floor_paired"):
        np.testing.assert_allclose(streamed[name], counted[name], atol=apart, rtol=0, err_msg=name)
    for name in ("births", "reconfiguration_births", "reconfiguration_frobenius", "mean_absolute_correlation"):
        np.testing.assert_allclose(streamed[name], counted[name], atol=2e-5, rtol=0, err_msg=name)
    np.testing.assert_array_equal(streamed["dead_units"], counted["dead_units"])
    assert dya.analyze(recording, route="streaming").attrs["route"] == "streaming"


def test_a_whole_result_is_read_however_little_memory_is_free(
    path: Path, computations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dya.analyze(dya.open_recording(path))
    monkeypatch.setattr(pipeline, "worker_memory", lambda: 1000)
    assert dya.analyze(dya.open_recording(path)).attrs["route"] == "dense"
    assert dya.analyze(dya.open_recording(path), seed=1).attrs["route"] == "streaming"
    assert dya.analyze(dya.open_recording(path), seed=1, deaths="exact").attrs["route"] == "dense"


def test_loops_that_need_too_much_memory_are_left_out_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = dya.analyze(dya.open_recording(path), route="dense", engine="dynome", memory_limit=2000)
    assert found.attrs["h1"].startswith("left out of 4 of 4 snapshots: loops of 20 units need more")
    assert found.attrs["h1"] in caplog.text
    assert np.isnan(found["functional_persistence"]).all()
    assert not np.isnan(found["reconfiguration_top"][1:]).any()
    none = dya.analyze(dya.open_recording(path), engine="none")
    assert "as asked for" in none.attrs["h1"]
    assert np.isnan(none["reconfiguration_wasserstein"]).all()


def test_measure_and_units_are_those_of_connectomes(path: Path) -> None:
    recording = dya.open_recording(path)
    found = dya.analyze(recording, measure="spearman", units=9, seed=3)
    connectomes = dya.connectomes(recording, measure="spearman", units=9, seed=3)
    xr.testing.assert_equal(found[["births", "deaths", "dead_units"]].compute(),
                            dya.graph_homology(connectomes).compute())  # fmt: skip
    np.testing.assert_array_equal(found["unit"], connectomes["unit"])
    assert found.attrs["units"] == 9
    assert found["births"].shape == (4, 8)


def test_until_an_epoch(make_recording: MakeRecording) -> None:
    def diverge(moment: Moment) -> Moment:
        broken = {site: np.full_like(values, np.inf) for site, values in (moment.probe or {}).items()}
        return replace(moment, probe=broken) if moment.epoch >= 3 else moment

    recording = dya.open_recording(make_recording(epochs=5, change=diverge))
    with pytest.raises(InvalidDataError, match="at epoch 3"):
        dya.analyze(recording, route="streaming")
    found = dya.analyze(recording, until=2)
    assert found["epoch"].values.tolist() == [0, 1, 2]
    whole = dya.analyze(dya.open_recording(make_recording(epochs=5)))
    np.testing.assert_array_equal(found["reconfiguration_top"], whole["reconfiguration_top"][:3])
    with pytest.raises(InvalidArgumentError, match="no snapshot up to epoch -1; its first is of epoch 0"):
        dya.analyze(recording, until=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "kendall"}, "measure must be one of pearson, .*'kendall'"),
        ({"deaths": "all"}, "deaths must be one of auto, exact, histogram; got 'all'"),
        ({"route": "tiles"}, "route must be one of auto, dense, streaming; got 'tiles'"),
        ({"engine": "fast"}, "engine must be one of .*'fast'"),
        ({"route": "streaming", "deaths": "exact"}, "streaming route cannot do deaths='exact'"),
        ({"route": "streaming", "measure": "cosine"}, "streaming route cannot do measure='cosine'"),
        ({"units": 1}, "units must lie between"),
        ({"units": 2.5}, "units must be a whole number; got 2.5"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"until": 2.5}, "until must be a whole number; got 2.5"),
        ({"memory_limit": "8GB"}, "memory_limit must be a whole number; got '8GB'"),
        ({"memory_limit": 0}, "memory_limit must be at least 1; got 0"),
    ],
)
def test_wrong_choices_are_refused_before_any_work(
    path: Path, computations: list[int], options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        dya.analyze(dya.open_recording(path), **options)
    assert computations == []


def test_no_warning_comes_from_a_plain_call(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dya.analyze(dya.open_recording(path))


def test_the_code_version_changes_with_every_module_that_makes_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dynome_analysis"
    shutil.copytree(Path(pipeline.__file__).parents[1], folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pipeline, "__file__", str(folder / "pipeline" / "analysis.py"))
    version = pipeline.code_version.__wrapped__
    first = version()
    assert version() == first
    assert all((folder / name).exists() for name in pipeline.NOT_NUMBERS)
    (folder / "tables.py").write_text("changed")
    assert version() == first
    for name in ("kernels/multiset.py", "labelled/connectomes.py", "new.py"):
        before = version()
        (folder / name).write_text("changed")
        assert version() != before, name
