"""A selection of recorded activations equals numpy's, has few tasks, and reads no more than it must."""

from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices
from numpy.typing import NDArray
from recordings import moments, write_recording

import dynome_analysis as dya
from dynome_analysis import lazy, reading
from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.store import Piece

SITES = {"a": 1536, "b": 5}  # a shard of four inner chunks, (800, 384), and a file that is one chunk
SAMPLES, SNAPSHOTS = 800, 3
SHAPE = (SNAPSHOTS, SAMPLES, sum(SITES.values()))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> dya.Recording:
    path = tmp_path_factory.mktemp("lazy") / "run"
    write_recording(path, epochs=SNAPSHOTS - 1, sites=SITES, samples=SAMPLES, weights=False)
    return dya.open_recording(path)


@pytest.fixture(scope="module")
def recorded() -> NDArray[np.float32]:
    found = moments(SITES, samples=SAMPLES, epochs=SNAPSHOTS - 1, weights=False)
    return np.stack([np.concatenate(list(moment.probe.values()), axis=1) for moment in found])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every inner chunk that was read: its file and its number there."""
    found: list[tuple[str, int]] = []
    original = Piece.read

    def spy(piece: Piece, *out: Any) -> None:
        found.append((f"{piece.path.parts[-3]}/{piece.path.name}", piece.number))
        original(piece, *out)

    monkeypatch.setattr(Piece, "read", spy)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dya.Recording, NDArray[np.float32]]:
    sites = {"a": 5, "b": 3, "c": 1}
    path = write_recording(tmp_path_factory.mktemp("small") / "run", epochs=3, sites=sites, samples=6, weights=False)
    stored = moments(sites, samples=6, epochs=3, weights=False)
    return dya.open_recording(path), np.stack([np.concatenate([*one.probe.values()], axis=1) for one in stored])


@given(st.data())
@settings(deadline=None)
def test_any_selection_equals_that_of_numpy(
    small: tuple[dya.Recording, NDArray[np.float32]], data: st.DataObject
) -> None:
    recording, expected = small
    lazily: Any = recording.activations().data
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()) or 0 in expected.shape or not expected.ndim:
            index: Any = data.draw(basic_indices(expected.shape, allow_newaxis=True))
        else:
            axis = data.draw(st.integers(0, expected.ndim - 1))
            places = st.integers(-expected.shape[axis], expected.shape[axis] - 1)
            index = (slice(None),) * axis + (data.draw(st.lists(places, min_size=1, max_size=5)),)
        lazily, expected = lazily[index], expected[index]
        assert lazily.shape == expected.shape
    found = np.asarray(lazily.compute(scheduler="synchronous"))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_few_units_of_all_snapshots_are_one_task_that_reads_their_chunks(
    recording: dya.Recording, recorded: NDArray[np.float32], read: list[tuple[str, int]]
) -> None:
    chosen = recording.activations()[:, :, 400:440]
    assert chosen.chunks == ((SNAPSHOTS,), (SAMPLES,), (40,))
    assert chosen.coords["epoch"].to_numpy().tolist() == [0, 1, 2]
    assert read == []
    np.testing.assert_array_equal(chosen, recorded[:, :, 400:440])
    assert read == [(f"a/c.{snapshot}.0.0", 1) for snapshot in range(SNAPSHOTS)]
    read.clear()
    places = [2, 767, 768, 1537]
    np.testing.assert_array_equal(recording.activations()[1:, :, places], recorded[1:][:, :, places])
    chunks = [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert sorted(read) == [
        (f"{site}/c.{snapshot}.0.0", k) for site in "ab" for snapshot in (1, 2) for s, k in chunks if s == site
    ]


def test_chunks_are_whole_snapshots_or_no_larger_than_64_mib(
    recording: dya.Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = recording.activations()
    assert activations[1:].chunks == ((1, 1), (SAMPLES,), SHAPE[2:])
    assert activations[[2, 0], :].chunks == ((1, 1), (SAMPLES,), SHAPE[2:])
    assert activations[1].chunks == ((SAMPLES,), SHAPE[2:])
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 2 * SAMPLES * 10 * 4 + 1)
    assert activations[:, :, :10].chunks[0] == (2, 1)
    assert activations[:, :, :1000].chunks[0] == (1, 1, 1)
    assert activations[:, :, :10][:, 0].chunks == ((3,), (10,))  # goes on from what is recorded
    assert activations[:, :, :10][1:].chunks[0] == (2,)
    assert activations[1][:, :1000].chunks == ((SAMPLES,), (1000,))  # tasks along samples would decode the same
    assert type(activations[1].chunk(sample=100).data) is da.Array
    with pytest.raises((TypeError, NotImplementedError)):  # as Dask has it
        activations.data[:, :, np.zeros((2, 2), int)]


def test_other_chunks_read_what_they_hold(
    recording: dya.Recording, recorded: NDArray[np.float32], read: list[tuple[str, int]]
) -> None:
    chosen = recording.activations()[:, :, :10].chunk(snapshot=1)
    assert chosen.chunks == ((1, 1, 1), (SAMPLES,), (10,))
    assert type(chosen.data) is type(recording.activations().data)  # no task waits for the one of all snapshots
    np.testing.assert_array_equal(chosen.data.blocks[1], recorded[1:2, :, :10])
    assert read == [("a/c.1.0.0", 0)]
    np.testing.assert_array_equal(chosen.chunk(unit=3), recorded[:, :, :10])
    np.testing.assert_array_equal(recording.activations().chunk(snapshot=2), recorded)


def test_what_was_computed_is_nobody_elses(recording: dya.Recording, read: list[tuple[str, int]]) -> None:
    chosen = recording.activations()[:, :4, :4]
    first, expected = chosen.to_numpy(), chosen.to_numpy().copy()
    first[:] = -1
    np.testing.assert_array_equal(chosen.to_numpy(), expected)
    kept = chosen.persist()
    assert type(kept.data) is da.Array
    read.clear()
    kept.to_numpy()[:] = -1
    np.testing.assert_array_equal(kept[:, 1:, :2], expected[:, 1:, :2])
    assert read == []


def test_a_selection_travels_and_is_computed_with_others(
    recording: dya.Recording, recorded: NDArray[np.float32]
) -> None:
    activations = recording.activations()
    chosen = activations[:, :, 5:9]
    np.testing.assert_array_equal(cloudpickle.loads(cloudpickle.dumps(chosen)), recorded[:, :, 5:9])
    again, total, other = dask.compute(chosen, chosen.sum(), activations[1, :, 1500:])
    np.testing.assert_array_equal(again, recorded[:, :, 5:9])
    np.testing.assert_allclose(total, recorded[:, :, 5:9].sum(dtype=float), rtol=1e-5)
    np.testing.assert_array_equal(other, recorded[1, :, 1500:])
    with pytest.raises(IndexError):
        activations.data[3]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_threads_widen_every_dtype_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, threads: int
) -> None:
    monkeypatch.setattr(reading, "LEAST_FOR_THREADS", 0)
    monkeypatch.setattr(reading, "usable_cores", lambda: threads)
    write_recording(tmp_path / "run", epochs=1, sites={"a": 2048, "b": 7}, samples=700, weights=False, dtype=dtype)
    stored = moments({"a": 2048, "b": 7}, samples=700, epochs=1, weights=False, dtype=dtype)
    expected = np.concatenate([np.stack([moment.probe[site] for moment in stored]) for site in "ab"], axis=-1)
    if dtype == "bfloat16":
        expected = (expected.astype(np.uint32) << 16).view(np.float32)
    activations = dya.open_recording(tmp_path / "run").activations()
    assert activations.dtype == (np.float64 if dtype == "float64" else np.float32)
    np.testing.assert_array_equal(activations, expected)
    np.testing.assert_array_equal(activations[:, ::3, 1000:], expected[:, ::3, 1000:])


def test_float16_is_widened_to_the_bit() -> None:
    stored = np.arange(2**16, dtype=np.uint16).view(np.float16)
    out = np.empty(stored.shape, np.float32)
    reading.decode(out, stored, dtype="float16")
    np.testing.assert_array_equal(out.view(np.uint32), stored.astype(np.float32).view(np.uint32))
    wide = np.empty(stored.shape, np.float64)
    reading.decode(wide, stored, dtype="float16")
    np.testing.assert_array_equal(wide, out)


def test_damage_that_a_thread_meets_is_told_with_the_file(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "run", epochs=1, sites=SITES, samples=SAMPLES, weights=False)
    chosen = dya.open_recording(path).activations()
    file = path / "store.zarr/probe/sites/a/activation/c.1.0.0"
    damaged = bytearray(file.read_bytes())
    damaged[20] ^= 1  # in the first inner chunk
    file.write_bytes(damaged)
    assert np.isfinite(chosen[:, :, 384:].to_numpy()).all()
    for selection in (np.s_[:, :, :5], np.s_[:], np.s_[1]):
        with pytest.raises(CorruptRecordingError, match=r"a/activation/c\.1\.0\.0: .*crc32c"):
            chosen[selection].compute()
