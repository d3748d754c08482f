"""Data sets come out in disjoint, seeded, balanced splits; a file that is not what it should be never becomes data."""

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynome_analysis import datasets
from dynome_analysis.datasets import Dataset, load_dataset
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    """The idx format as its authors describe it: 0, 0, type 8, number of axes, big-endian sizes, values."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """A data set of MNIST's form with 60 + 20 images, known by its own checksums; nothing in the environment."""
    rng = np.random.default_rng(0)
    contents = {
        NAMES[0]: idx(rng.integers(0, 256, (60, 28, 28))),
        NAMES[1]: idx(np.arange(60) % 10),
        NAMES[2]: idx(rng.integers(0, 256, (20, 28, 28))),
        NAMES[3]: idx(np.arange(20) % 10),
    }
    files = tuple(
        datasets._RemoteFile(
            name, hashlib.md5(gzip.compress(content, mtime=0)).hexdigest(), hashlib.md5(content).hexdigest()
        )
        for name, content in contents.items()
    )
    monkeypatch.setitem(datasets._REMOTE, "mnist", replace(datasets._REMOTE["mnist"], files=files))
    monkeypatch.delenv("DYNOME_DATA", raising=False)
    monkeypatch.setattr(datasets, "_download_folder", lambda: tmp_path / "downloads")
    return contents


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on port 9 of this machine."""
    monkeypatch.setitem(
        datasets._REMOTE, "mnist", replace(datasets._REMOTE["mnist"], url="http://127.0.0.1:9/nothing/")
    )


def lay(folder: Path, contents: dict[str, bytes], *, compressed: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


def rows(dataset: Dataset) -> list[bytes]:
    return [image.tobytes() for split in (dataset.train, dataset.validation, dataset.test) for image in split.images]


def test_digits_are_all_there_in_three_balanced_splits() -> None:
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (998, 200, 599)
    assert digits.image_shape == (8, 8)
    assert digits.train.images.dtype == np.float32
    assert digits.train.labels.dtype == np.int64
    assert 0 == digits.train.images.min() < digits.train.images.max() == 1
    everything = sorted((image / 16).astype(np.float32).tobytes() for image in load_digits().images)
    assert sorted(rows(digits)) == everything
    for split in (digits.train, digits.validation, digits.test):
        counts = np.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.12 * len(split)


def test_the_split_is_fixed_by_the_seed() -> None:
    first, again, other = load_dataset("digits"), load_dataset("digits"), load_dataset("digits", seed=1)
    assert rows(first) == rows(again)
    assert rows(first) != rows(other)


def test_fewer_training_images_leave_the_test_set_as_it_is() -> None:
    whole, few = load_dataset("digits"), load_dataset("digits", train_size=100, validation_size=50)
    assert (len(few.train), len(few.validation)) == (100, 50)
    assert np.bincount(few.train.labels).tolist() == pytest.approx([10] * 10, abs=1)
    np.testing.assert_array_equal(few.test.images, whole.test.images)


@pytest.mark.parametrize(("train_size", "validation_size"), [(1100, 200), (5, 100), (100, 3)])
def test_sizes_that_cannot_be_are_refused(train_size: int, validation_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"at least 10 and together at most 1198, got \d+ and \d+"):
        load_dataset("digits", train_size=train_size, validation_size=validation_size)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match="'cifar': choose one of digits, mnist, fashion-mnist"):
        load_dataset("cifar")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_files_are_found_in_either_layout(
    small_mnist: dict[str, bytes], offline: None, tmp_path: Path, nested: bool, compressed: bool
) -> None:
    folder = tmp_path / "data"
    lay(folder / "mnist" if nested else folder, small_mnist, compressed=compressed)
    mnist = load_dataset("mnist", folder)
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (50, 10, 20)
    expected = np.frombuffer(small_mnist[NAMES[2]][16:], np.uint8).reshape(20, 28, 28)
    np.testing.assert_allclose(mnist.test.images * 255, expected, rtol=1e-6)
    assert mnist.test.labels.tolist() == [*range(10)] * 2


def test_the_environment_names_the_folder(
    small_mnist: dict[str, bytes], offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNOME_DATA", str(lay(tmp_path / "data", small_mnist)))
    assert len(load_dataset("mnist").test) == 20
    with pytest.raises(InvalidArgumentError, match=r"elsewhere \(data_dir\) is not a folder"):
        load_dataset("mnist", tmp_path / "elsewhere")
    monkeypatch.setenv("DYNOME_DATA", str(tmp_path / "gone"))
    with pytest.raises(InvalidArgumentError, match=r"gone \(DYNOME_DATA\) is not a folder"):
        load_dataset("mnist")


def test_a_changed_pixel_is_noticed(small_mnist: dict[str, bytes], tmp_path: Path) -> None:
    changed = bytearray(small_mnist[NAMES[0]])
    changed[100] ^= 1
    folder = lay(tmp_path / "data", {**small_mnist, NAMES[0]: bytes(changed)})
    with pytest.raises(InvalidDataError, match=rf"{NAMES[0]}.gz is damaged, or not the file .* of mnist: replace"):
        load_dataset("mnist", folder)


def test_a_truncated_file_is_noticed(small_mnist: dict[str, bytes], tmp_path: Path) -> None:
    folder = lay(tmp_path / "data", small_mnist)
    path = folder / f"{NAMES[2]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidDataError, match=rf"{NAMES[2]}.gz cannot be read"):
        load_dataset("mnist", folder)


def test_without_files_and_network_one_line_tells_the_way_out(
    small_mnist: dict[str, bytes], offline: None, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidDataError, match=r"mnist is not in .*empty and could not be downloaded") as caught:
        load_dataset("mnist", tmp_path / "empty")
    text = str(caught.value)
    assert "\n" not in text
    assert "--data-dir or DYNOME_DATA" in text
    assert "digits, which needs no download" in text


@pytest.fixture
def server(small_mnist: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server on this machine with the compressed files; yields the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in small_mnist.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{running.server_address[1]}/"
        monkeypatch.setitem(datasets._REMOTE, "mnist", replace(datasets._REMOTE["mnist"], url=url))
        yield folder
        running.shutdown()
        thread.join()


def test_a_download_is_checked_and_kept(server: Path, tmp_path: Path) -> None:
    assert len(load_dataset("mnist").test) == 20
    for path in server.iterdir():
        path.unlink()
    assert len(load_dataset("mnist").test) == 20
    assert len(list((tmp_path / "downloads" / "mnist").iterdir())) == 4


def test_a_download_with_another_content_is_refused_and_not_kept(server: Path, tmp_path: Path) -> None:
    (server / f"{NAMES[1]}.gz").write_bytes(b"not what was asked for")
    with pytest.raises(InvalidDataError, match="could not be downloaded"):
        load_dataset("mnist")
    assert not list((tmp_path / "downloads" / "mnist").glob("train-labels*"))


def test_downloads_go_to_the_checkout_or_else_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert datasets._download_folder() == Path(__file__).parents[2] / "data" / "downloads"
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "site-packages" / "dynome_analysis" / "datasets.py"))
    assert "dynome" in str(datasets._download_folder())
    assert Path(__file__).parents[2] not in datasets._download_folder().parents


def test_the_real_checksums_have_the_form_of_one() -> None:
    for remote in datasets._REMOTE.values():
        assert [file.name for file in remote.files] == list(NAMES)
        for file in remote.files:
            assert {len(file.md5), len(file.content_md5)} == {32}
        assert len(remote.classes) == 10
