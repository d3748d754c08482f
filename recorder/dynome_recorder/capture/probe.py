"""The probe: the fixed samples whose activations are recorded, the same rows in every snapshot.

Samples are chosen by seed, balanced over classes where labels are at hand, and loaded once into host memory. Loading
leaves the caller's random generators as they were, and seeds them inside, so that random augmentation gives the same
samples in a resumed run. The hash covers every loaded value: it is what makes two recordings comparable row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_recorder.capture.sparse import dense_parts
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.schedule import check_count
from dynome_recorder.tracing.isolation import preserved_random_state

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

Forward: TypeAlias = "Callable[[nn.Module, Any], Any]"

_LABEL_KEYS = ("labels", "label")


class Probe:
    """A fixed, seeded choice of samples, and how to feed them to a model.

    Parameters
    ----------
    data
        A tensor or array (rows are samples), a tuple ``(inputs, labels)`` of them, or any map-style data set.
    size
        Number of samples; all of them where the data has no more. None takes all.
    seed
        Seed of the choice and of every random generator while samples load and while the probe runs, from 0.
    batch_size
        Samples per forward pass.
    labels
        Class of each sample of ``data``, for the balance: integers, texts or booleans. ``"auto"`` looks for them
        where that costs nothing: the tuple's second item, a `TensorDataset`'s last tensor, ``targets`` or ``labels``
        of a data set, through `Subset` too. None does not balance.
    collate
        Turns a list of samples into a batch; torch's default where None. For data sets only.
    transductive
        True where one forward pass needs all rows at once, as on a graph whose nodes are the samples: every pass gets
        all of ``data`` and the rows of the chosen samples are kept from each output.

    Notes
    -----
    A batch that is a tuple is an (inputs, labels, ...) sample: the model gets its first item. A mapping is passed as
    keyword arguments, labels left out. The recorder's ``forward=lambda model, batch: ...`` replaces both and sees the
    batch whole.

    Cost: loads ``size`` samples once, at the first use, and keeps them in host memory. A generator that the data set
    keeps for itself advances while it loads: give the probe a data set of its own then.
    """

    def __init__(
        self,
        data: Any,
        *,
        size: int | None = 1000,
        seed: int = 0,
        batch_size: int = 256,
        labels: Any = "auto",
        collate: Callable[[list[Any]], Any] | None = None,
        transductive: bool = False,
    ) -> None:
        size = None if size is None else check_count("Probe: size", size, least=2)
        self._data = data
        self._collate = collate
        self._loaded: dict[tuple[int, int], _Loaded] = {}
        self._row_indices: dict[tuple[int, int, Any], torch.Tensor] = {}
        self._changes_inputs = False
        self.seed = check_count("Probe: seed", seed, least=0)
        if self.seed >= 2**64:
            raise InvalidArgumentError(f"Probe: seed must be below 2**64, as torch takes it; got {seed!r}.")
        self.batch_size = check_count("Probe: batch_size", batch_size, least=1)
        self.transductive = transductive
        self.population = _count_samples(data)
        classes = _find_labels(data) if isinstance(labels, str) and labels == "auto" else _check_labels(labels)
        if classes is not None and len(classes) != self.population:
            raise InvalidArgumentError(
                f"Probe: labels must have one entry per sample; got {len(classes)} for {self.population} samples."
            )
        self.balanced = classes is not None
        self.indices = choose_samples(self.population, size=size, seed=self.seed, classes=classes)

    @property
    def size(self) -> int:
        """Number of samples, which is the number of rows of every recorded activation."""
        return len(self.indices)

    def span(self, rows: slice | None = None) -> tuple[int, int]:
        """Return the first of some rows and the one behind the last; None stands for all rows."""
        start, stop, step = (rows if rows is not None else slice(None)).indices(self.size)
        if step != 1:
            raise InvalidArgumentError(f"Probe: rows must follow each other; got {rows}.")
        return start, max(start, stop)

    def batches(self, rows: slice | None = None, *, pinned: bool = False) -> list[Any]:
        """Return the probe's batches in host memory, loading them at the first call.

        Where a model changes its input in place, the batches are loaded again, and copied from then on: the same values
        come at every call.

        Parameters
        ----------
        rows
            Only these rows, in batches of their own; a transductive probe gives everything all the same. None: all.
        pinned
            In memory that an accelerator copies from without anybody waiting.

        Raises
        ------
        InvalidDataError
            If a sample cannot be loaded or samples cannot be put into a batch.
        """
        span = self.span(rows) if not self.transductive else (0, self.size)
        if span in self._loaded and self._loaded[span].is_changed():
            self._changes_inputs = True
            del self._loaded[span]
        if span not in self._loaded:
            self._loaded[span] = _Loaded(self._load_quietly(*span))
        loaded = self._loaded[span]
        if pinned and not loaded.pinned:
            loaded = self._loaded[span] = _Loaded(_map_tensors(loaded.batches, _pin), pinned=True)
        return _map_tensors(loaded.batches, _clone) if self._changes_inputs else loaded.batches

    def batch_sizes(self, rows: slice | None = None) -> list[int]:
        """Return how many recorded rows each batch gives."""
        start, stop = self.span(rows)
        if self.transductive:
            return [stop - start]
        return [min(self.batch_size, stop - first) for first in range(start, stop, self.batch_size)]

    def rows_per_batch(self, rows: slice | None = None) -> list[int]:
        """Return how many rows each forward pass works on: more than it records where the probe is transductive."""
        return [self.population] if self.transductive else self.batch_sizes(rows)

    def row_index(self, device: torch.device, rows: slice | None = None) -> torch.Tensor | None:
        """Return which rows of an output to record, int64 on the device; None where that is all of them."""
        import torch

        if not self.transductive:
            return None
        start, stop = self.span(rows)
        if (start, stop, device) not in self._row_indices:  # made once: the copy to a device waits for it
            self._row_indices[start, stop, device] = torch.from_numpy(self.indices[start:stop]).to(device)
        return self._row_indices[start, stop, device]

    def hash(self) -> str:
        """Return a digest of every loaded value, its dtype and shape (hex, 128 bits). Cost: one pass over the data."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.batches():
            _digest_into(digest, batch)
        if self.transductive:
            digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what ``run.json`` says of the probe; two recordings with equal descriptions have the same rows."""
        return {
            "hash": self.hash(),
            "size": self.size,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "population": self.population,
            "balanced": self.balanced,
            "transductive": self.transductive,
        }

    def __repr__(self) -> str:
        """Return size, choice and seed in one line."""
        choice = "class-balanced" if self.balanced else "random"
        return f"<Probe: {self.size} of {self.population} samples, {choice}, seed {self.seed}>"

    def _repr_html_(self) -> str:
        from dynome_recorder.representation import show_probe

        return show_probe(self)._repr_html_()

    def _load_quietly(self, start: int, stop: int) -> list[Any]:
        """Load without leaving a trace in the caller's generators; an error becomes one clear line."""
        import torch

        with preserved_random_state(seed=self.seed), torch.inference_mode(mode=False):
            try:
                return self._load(start, stop)
            except Exception as error:
                text = " ".join(str(error).split())
                raise InvalidDataError(
                    f"Probe: the samples could not be loaded into batches, {type(error).__name__}: {text[:300]};"
                    " pass collate= for samples that torch's default cannot put together."
                ) from error

    def _load(self, start: int, stop: int) -> list[Any]:
        if self.transductive:
            return [_take(self._data, np.arange(self.population), self._collate)]
        firsts = range(start, stop, self.batch_size)
        if start == 0 or _arrays(self._data) is not None:
            spans = [self.indices[first : min(first + self.batch_size, stop)] for first in firsts]
            return [_take(self._data, span, self._collate) for span in spans]
        # What comes before is loaded too: a data set that augments at random gives the same samples in every part.
        samples = [self._data[int(index)] for index in self.indices[:stop]]
        return [_collate(samples[first : min(first + self.batch_size, stop)], self._collate) for first in firsts]


class _Loaded:
    """Batches, and how often their tensors had been changed in place when they were loaded."""

    def __init__(self, batches: list[Any], *, pinned: bool = False) -> None:
        self.batches = batches
        self.pinned = pinned
        self._versions = self._count()

    def is_changed(self) -> bool:
        return self._count() != self._versions

    def _count(self) -> list[int]:
        versions: list[int] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            versions.append(tensor._version)
            return tensor

        _map_tensors(self.batches, note)
        return versions


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call a model on a batch as `Probe` describes; this is the recorder's ``forward`` where none is given."""
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name not in _LABEL_KEYS})
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on the device; nested tuples, lists and mappings keep their form.

    Pinned tensors are on their way when this returns; the device's own order does the rest.
    """
    import torch

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        return value.to(device) if hasattr(value, "to") else value

    return _map_leaves(batch, move)


def choose_samples(
    population: int, *, size: int | None, seed: int, classes: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Choose samples by seed, as evenly over classes as their numbers allow, in random order.

    Parameters
    ----------
    population
        Number of samples to choose from.
    size
        Number to choose; None or more than there are takes all.
    seed
        Seed of the choice.
    classes
        shape (population,): the class of each sample, or None.

    Returns
    -------
    int64, shape (sample,): distinct indices. Any leading part of a balanced choice is as random as the whole.

    Notes
    -----
    The order comes from PCG64's raw 64-bit stream, which numpy promises not to change, unlike its permutations: the
    same seed must choose the same samples under another numpy. Cost: one sort of the population.
    """
    keys = np.random.PCG64(seed).random_raw(population)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    if size is None or size >= population:
        return order
    if classes is None:
        return order[:size]
    _, codes = np.unique(classes, return_inverse=True)
    # The rank of each sample within its class, along the random order: taking low ranks first takes classes evenly.
    ranks = np.empty(population, dtype=np.int64)
    shuffled = codes[order]
    by_class = np.argsort(shuffled, kind="stable")
    counts = np.bincount(codes)
    ranks[by_class] = np.arange(population) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.sort(np.argsort(ranks, kind="stable")[:size])
    return order[chosen]


def _count_samples(data: Any) -> int:
    from torch.utils.data import IterableDataset

    arrays = _arrays(data)
    if arrays is not None:
        lengths = sorted({len(array) for array in arrays})
        if len(lengths) > 1:
            raise InvalidArgumentError(
                f"Probe: inputs and labels must have one row per sample each; got {lengths} rows."
            )
        count = lengths[0]
    elif (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (str, bytes, Mapping, IterableDataset))
    ):
        count = len(data)
    else:
        raise InvalidArgumentError(
            "Probe: data must be a tensor, an array, a tuple of them, or a data set with len() and indexing;"
            f" got {type(data).__name__}. Take a list of samples from an iterable one."
        )
    if count < 2:
        raise InvalidArgumentError(f"Probe: data must hold at least 2 samples; got {count}.")
    return count


def _arrays(data: Any) -> tuple[Any, ...] | None:
    """Return the data as arrays with one row per sample, or None where it is a data set."""
    import torch

    if isinstance(data, (torch.Tensor, np.ndarray)):
        return (data,) if data.ndim else None
    if (
        isinstance(data, tuple)
        and data
        and all(isinstance(item, (torch.Tensor, np.ndarray)) and item.ndim for item in data)
    ):
        return data
    return None


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists and mappings with every value in them replaced."""
    if isinstance(value, Mapping):
        return {name: _map_leaves(member, change) for name, member in value.items()}
    if isinstance(value, (tuple, list)):
        changed = [_map_leaves(member, change) for member in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    return change(value)


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import torch

    return _map_leaves(value, lambda member: change(member) if isinstance(member, torch.Tensor) else member)


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.pin_memory() if tensor.layout is torch.strided else tensor


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def _collate(samples: list[Any], collate: Callable[[list[Any]], Any] | None) -> Any:
    from torch.utils.data import default_collate

    return (collate or default_collate)(samples)


def _take(data: Any, indices: NDArray[np.int64], collate: Callable[[list[Any]], Any] | None) -> Any:
    import torch

    arrays = _arrays(data)
    if arrays is None:
        return _collate([data[int(index)] for index in indices], collate)
    # torch.from_numpy shares memory with what indexing has just copied, so the probe keeps its values if data changes.
    rows = [
        torch.from_numpy(np.ascontiguousarray(array[indices]))
        if isinstance(array, np.ndarray)
        else array.detach()[torch.from_numpy(indices).to(array.device)].cpu()
        for array in arrays
    ]
    return tuple(rows) if isinstance(data, tuple) else rows[0]


def _find_labels(data: Any) -> NDArray[Any] | None:
    """Return the labels of a data set where they can be read without loading samples; None otherwise."""
    from torch.utils.data import Subset, TensorDataset

    if isinstance(data, Subset):
        inner = _find_labels(data.dataset)
        return inner[np.asarray(data.indices)] if inner is not None else None
    if isinstance(data, TensorDataset):
        candidates = data.tensors[-1:] if len(data.tensors) > 1 else ()
    elif isinstance(data, tuple):
        candidates = data[1:2]
    else:
        candidates = tuple(getattr(data, name) for name in ("targets", "labels") if hasattr(data, name))
    for candidate in candidates:
        try:
            labels = _to_numpy(candidate)
        except (TypeError, ValueError, RuntimeError):
            continue
        if labels.ndim == 1 and labels.dtype.kind in "biuUS":
            return labels
    return None


def _check_labels(labels: Any) -> NDArray[Any] | None:
    if labels is None:
        return None
    array = _to_numpy(labels)
    if array.ndim != 1 or array.dtype.kind not in "biuUS":
        raise InvalidArgumentError(
            "Probe: labels must be one-dimensional integers, texts or booleans;"
            f" got {array.dtype} of shape {array.shape}. Pass labels=None for regression targets."
        )
    return array


def _to_numpy(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    return array


def _digest_into(digest: hashlib.blake2b, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
        _digest_into(digest, [str(value.layout), list(value.shape), dense_parts(value)])
    elif isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(repr(name).encode())
            _digest_into(digest, value[name])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _digest_into(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        digest.update(repr(value).encode())
    else:
        raise InvalidDataError(
            f"Probe: a batch holds a {type(value).__name__}, whose values cannot be compared between runs;"
            " pass collate= that returns tensors, and forward= that makes the model's input of them."
        )
