"""Analyses of the training batches themselves: the samples that there are, and no others."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from recordings import describe

import dynome_analysis as dya
from dynome_analysis.recording import SmallBatchWarning
from dynome_recorder.cli import main
from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.storage.layout import ArraySpec
from dynome_recorder.storage.run import RunDescription
from dynome_recorder.storage.writer import Moment, RecordingWriter

UNITS, BATCH, SIZES = 6, 16, (16, 16, 9, 16)


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A recording of one process whose third batch is smaller; and the batches."""
    plain = describe({"hidden": UNITS}, samples=20, weights=False)
    description = RunDescription(
        sites=plain.sites,
        batches={"hidden": ArraySpec((BATCH, UNITS), "float32", ("sample", "unit"), rows=BATCH)},
        batch_size=BATCH,
        probe=plain.probe,
        model=plain.model,
    )
    random = np.random.default_rng(0)
    batches = [random.standard_normal((size, UNITS)).astype(np.float32) for size in SIZES]
    with RecordingWriter.open(tmp_path / "run", description) as writer:
        for step, batch in enumerate(batches, start=1):
            ids = np.arange(len(batch)) + 100 * step
            writer.commit(
                Moment(0, step, epoch_complete=False, batches={"hidden": batch}, sample_ids=ids, rows=len(batch))
            )
    return tmp_path / "run", batches


def test_connectomes_are_of_the_samples_that_there_are(recorded: tuple[Path, list[np.ndarray]]) -> None:
    path, batches = recorded
    recording = dya.open_recording(path, stream="batches")
    connectomes = dya.connectomes(recording)
    assert connectomes.step.values.tolist() == [1, 2, 3, 4]
    for found, batch in zip(connectomes.values, batches, strict=True):
        expected = np.abs(np.corrcoef(batch, rowvar=False))
        np.fill_diagonal(expected, 0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    activations = recording.activations()
    assert activations.shape == (4, BATCH, UNITS)
    assert np.isnan(activations.values[2, 9:]).all()
    assert activations.sample_id.values[2].tolist() == [300 + k for k in range(9)] + [-1] * 7


def test_the_whole_analysis_takes_batches(recorded: tuple[Path, list[np.ndarray]]) -> None:
    path, _ = recorded
    result = CliRunner().invoke(main, ["analyze", str(path), "--stream", "batches", "--json"])
    assert result.exit_code == 0, result.output
    one = dya.analyze(dya.open_recording(path, stream="batches"))
    homology = dya.graph_homology(dya.connectomes(dya.open_recording(path, stream="batches")))
    np.testing.assert_allclose(one.births.values, homology.births.values, atol=1e-6)
    assert np.isfinite(dya.noise_floor(dya.open_recording(path, stream="batches")).two_halves.values).all()


def test_small_batches_are_told(recorded: tuple[Path, list[np.ndarray]]) -> None:
    path, _ = recorded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dya.connectomes(dya.open_recording(path, stream="batches"))
    golden = Path(__file__).parents[1] / "format/golden-1.1"
    with pytest.warns(SmallBatchWarning, match="say little of the correlations of 4 units"):
        dya.connectomes(dya.open_recording(golden, stream="batches"))


def test_a_stream_that_is_not_there_is_told(make_recording) -> None:
    with pytest.raises(InvalidArgumentError, match="holds no training batches; record them with Recorder"):
        dya.open_recording(make_recording(), stream="batches")
    with pytest.raises(InvalidArgumentError, match="stream must be one of probe, batches; got 'weights'"):
        dya.open_recording(make_recording(), stream="weights")
