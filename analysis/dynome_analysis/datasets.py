"""Real data sets for demos and workflows: a name in, arrays in three splits out.

``digits`` ships with scikit-learn. ``mnist`` and ``fashion-mnist`` are four idx files of their authors: looked for in
a data folder first (argument, then the environment variable ``DYNOME_DATA``), downloaded with pooch else. Whatever the
way, the content of each file is compared with its known MD5, so a wrong or torn file never becomes training data.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Dataset", "DatasetName", "Split", "load_dataset"]

DatasetName = Literal["digits", "mnist", "fashion-mnist"]

ENVIRONMENT_VARIABLE = "DYNOME_DATA"

# Digits has no test set of its own, so a third becomes one. A sixth of what remains is for validation, in every set.
DIGITS_TEST_SHARE = 1 / 3
VALIDATION_SHARE = 1 / 6


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes
    ----------
    images : ndarray of float32, shape (sample, row, column)
        Grey values in [0, 1].
    labels : ndarray of int64, shape (sample,)
        Class of each image, 0 to 9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in three disjoint splits.

    Attributes
    ----------
    name : str
        The name it was asked for by.
    train, validation, test : Split
        Validation images are held out of the training images; test images are used for nothing but the final judgement.
    classes : tuple of str
        Name of each label.
    source : str
        Where it comes from, in words.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    source: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (row, column)."""
        return self.train.images.shape[1:]


@dataclass(frozen=True)
class _RemoteFile:
    """An idx file: its name, the MD5 of the compressed file on the server, the MD5 of its content."""

    name: str
    md5: str
    content_md5: str


@dataclass(frozen=True)
class _RemoteDataset:
    url: str
    files: tuple[_RemoteFile, _RemoteFile, _RemoteFile, _RemoteFile]
    classes: tuple[str, ...]
    source: str


_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_REMOTE: dict[str, _RemoteDataset] = {
    "mnist": _RemoteDataset(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=(
            _RemoteFile(
                "train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"
            ),
            _RemoteFile(
                "train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"
            ),
            _RemoteFile(
                "t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"
            ),
            _RemoteFile(
                "t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"
            ),
        ),
        classes=_DIGIT_NAMES,
        source="MNIST handwritten digits (LeCun, Cortes, Burges)",
    ),
    "fashion-mnist": _RemoteDataset(
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        files=(
            _RemoteFile(
                "train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"
            ),
            _RemoteFile(
                "train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"
            ),
            _RemoteFile(
                "t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"
            ),
            _RemoteFile(
                "t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"
            ),
        ),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        source="Fashion-MNIST (Xiao, Rasul, Vollgraf, Zalando Research)",
    ),
}


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Return a data set, split into training, validation and test images.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion-mnist"}
        Which data set.
    data_dir : path, optional
        Folder with the idx files of MNIST or Fashion-MNIST, as ``DIR/mnist/train-images-idx3-ubyte.gz`` or directly
        in ``DIR``, compressed or not. Default: the environment variable ``DYNOME_DATA``. What is not found there is
        downloaded once, into ``data/downloads`` of a checkout or else the user's cache folder.
    train_size, validation_size : int, optional
        Keep so many training and validation images, chosen at random, each class in proportion. Default: all.
    seed : int
        Seed of the split.

    Returns
    -------
    Dataset
        Digits: a third of the 1,797 images is the test set. MNIST and Fashion-MNIST: their own 10,000 test images. A
        sixth of the remaining images is the validation set. Splits are random, stratified by class, fixed by ``seed``.

    Raises
    ------
    InvalidArgumentError
        Unknown name, no such folder, or more images asked for than there are.
    InvalidDataError
        A file is missing and cannot be downloaded, or its content is not that of the data set.

    Notes
    -----
    Digits takes milliseconds; the others read 11 MB or 30 MB and take about a second and 0.3 GB of memory.
    """
    if name == "digits":
        return _load_digits(train_size=train_size, validation_size=validation_size, seed=seed)
    if name in _REMOTE:
        return _load_remote(name, data_dir, train_size=train_size, validation_size=validation_size, seed=seed)
    raise InvalidArgumentError(f"unknown data set {name!r}: choose one of {', '.join(get_args(DatasetName))}")


def _load_digits(*, train_size: int | None, validation_size: int | None, seed: int) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)  # grey values are 0 to 16
    labels = digits.target.astype(np.int64)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_TEST_SHARE, stratify=labels, random_state=seed
    )
    train, validation = _hold_out(
        Split(images[rest], labels[rest]), train_size=train_size, validation_size=validation_size, seed=seed
    )
    return Dataset(
        name="digits",
        train=train,
        validation=validation,
        test=Split(images[test], labels[test]),
        classes=_DIGIT_NAMES,
        source="Optical recognition of handwritten digits (Alpaydin, Kaynak), as shipped with scikit-learn",
    )


def _load_remote(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train_size: int | None,
    validation_size: int | None,
    seed: int,
) -> Dataset:
    remote = _REMOTE[name]
    folder = _data_folder(data_dir)
    train_images, train_labels, test_images, test_labels = (
        _parse_idx(_content_of(file, remote, name=name, folder=folder)) for file in remote.files
    )
    train, validation = _hold_out(
        Split(_scaled(train_images), train_labels.astype(np.int64)),
        train_size=train_size,
        validation_size=validation_size,
        seed=seed,
    )
    return Dataset(
        name=name,
        train=train,
        validation=validation,
        test=Split(_scaled(test_images), test_labels.astype(np.int64)),
        classes=remote.classes,
        source=remote.source,
    )


def _hold_out(split: Split, *, train_size: int | None, validation_size: int | None, seed: int) -> tuple[Split, Split]:
    """Return disjoint training and validation images, each class in proportion."""
    from sklearn.model_selection import train_test_split

    validation_count = round(len(split) * VALIDATION_SHARE) if validation_size is None else validation_size
    train_count = len(split) - validation_count if train_size is None else train_size
    classes = len(np.unique(split.labels))
    if train_count < classes or validation_count < classes or train_count + validation_count > len(split):
        raise InvalidArgumentError(
            f"train_size and validation_size must be at least {classes} and together at most {len(split)}, "
            f"got {train_count} and {validation_count}: choose other sizes"
        )
    train, validation = train_test_split(
        np.arange(len(split)),
        train_size=train_count,
        test_size=validation_count,
        stratify=split.labels,
        random_state=seed,
    )
    return Split(split.images[train], split.labels[train]), Split(split.images[validation], split.labels[validation])


def _scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder to look in first, or None where none is named."""
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    if not given:
        return None
    folder = Path(given)
    if not folder.is_dir():
        origin = "data_dir" if data_dir is not None else ENVIRONMENT_VARIABLE
        raise InvalidArgumentError(f"the data folder {folder} ({origin}) is not a folder: name another one, or none")
    return folder


def _content_of(file: _RemoteFile, remote: _RemoteDataset, *, name: str, folder: Path | None) -> bytes:
    """Return the checked, uncompressed content of one file."""
    path = _find(file, name=name, folder=folder) or _download(file, remote, name=name, looked_in=folder)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataError(f"{path} cannot be read ({error}): replace or delete it") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != file.content_md5:
        raise InvalidDataError(f"{path} is damaged, or not the file {file.name} of {name}: replace or delete it")
    return content


def _find(file: _RemoteFile, *, name: str, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    candidates = (place / (file.name + ending) for place in (folder / name, folder) for ending in (".gz", ""))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _download(file: _RemoteFile, remote: _RemoteDataset, *, name: str, looked_in: Path | None) -> Path:
    """Download one file unless it is there already; pooch keeps only what has the right checksum."""
    import pooch

    folder = _download_folder() / name
    url = f"{remote.url}{file.name}.gz"
    try:
        return Path(pooch.retrieve(url=url, known_hash=f"md5:{file.md5}", fname=f"{file.name}.gz", path=folder))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        missing = "" if looked_in is None else f"is not in {looked_in} and "
        raise InvalidDataError(
            f"{name} {missing}could not be downloaded from {url} to {folder} ({type(error).__name__}): check the "
            f"connection, or put the four files into a folder and name it with --data-dir or {ENVIRONMENT_VARIABLE}, "
            "or take the data set digits, which needs no download"
        ) from error


def _download_folder() -> Path:
    """``data/downloads`` of a checkout, where one sees it and git ignores it; of an installation, the user's cache."""
    import pooch

    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data" / "downloads"
    return Path(pooch.os_cache("dynome"))


def _parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array in an idx file of unsigned bytes: 0, 0, 8, number of axes, big-endian sizes, values."""
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4).astype(np.int64)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)
