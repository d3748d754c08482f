"""What is committed at once, and its checks against ``run.json`` before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.storage.format import STREAMS, Json, encode_component
from dynome_recorder.storage.run import parts, share_of
from dynome_recorder.storage.views import HEALTH_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dynome_recorder.storage.layout import BulkLayout

__all__ = ["CheckedMoment", "Moment", "MomentCheck", "PartData"]


_KINDS = {"probe": "sites", "weights": "weights", "batches": "batches"}
"""What ``run.json`` calls the arrays of each stream."""


@dataclass(frozen=True)
class Moment:
    """What is committed at once.

    Several ranks each commit the same moments in the same order, with their own rows. Metrics, weights and the hash of
    the parameters count on rank 0 and are ignored on others.

    Attributes
    ----------
    epoch, step
        Epochs and optimizer steps completed.
    epoch_complete
        Whether training can resume after this epoch.
    parameters
        Hash of the model's parameters, or "".
    probe
        Activations per site, shape (sample, unit), every site; None where this moment has no probe snapshot. bfloat16
        arrives as uint16 bit patterns. With several ranks: the rows of this rank's share of the parts (`share_of`); a
        rank without any gives an empty mapping.
    weights
        Parameters per name; None where this moment has no weights snapshot.
    batches, gradients
        Activations and gradients per site of the training batch, shape (rows of `rows` samples, unit), every site; None
        where this moment has no snapshot of batches. A rank without samples gives empty mappings.
    sample_ids
        int64, shape (rows,): identity of each sample of the batch, -1 unknown; None: all unknown.
    rows
        Samples of the batch on this rank; at most the batch size of the recording.
    step_metrics
        Per name: steps and values since the last moment.
    epoch_metrics
        Per name: value of this epoch.
    health, batch_health
        Per site: counts of "nan", "inf", "overflow", in `probe` and in `batches`.
    skipped
        Streams whose snapshot was due and is not here, because the buffers were full: recorded as a gap.
    """

    epoch: int
    step: int
    epoch_complete: bool = True
    parameters: str = ""
    probe: Mapping[str, NDArray[Any]] | None = None
    weights: Mapping[str, NDArray[Any]] | None = None
    batches: Mapping[str, NDArray[Any]] | None = None
    gradients: Mapping[str, NDArray[Any]] | None = None
    sample_ids: NDArray[Any] | None = None
    rows: int = 0
    step_metrics: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)
    epoch_metrics: Mapping[str, float] = field(default_factory=dict)
    health: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    batch_health: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartData:
    """The content of one file: one part of one array's snapshot.

    Attributes
    ----------
    layout
        The array.
    part
        Which part.
    data
        Its rows in the dtype on disk; those that are missing up to the shape of a file are fill.
    """

    layout: BulkLayout
    part: int
    data: NDArray[Any]


@dataclass(frozen=True)
class CheckedMoment:
    """A moment that fits its recording, as its record and its files will say it.

    Attributes
    ----------
    moment
        The moment itself.
    streams
        Streams that have a snapshot here, skipped ones too.
    contents
        What is written by this rank.
    samples
        Samples of this rank's batch; empty where it writes none.
    health, batch_health, metrics
        As in the record.
    """

    moment: Moment
    streams: tuple[str, ...]
    contents: tuple[PartData, ...]
    samples: tuple[int, ...]
    health: dict[str, dict[str, int]]
    batch_health: dict[str, dict[str, int]]
    metrics: dict[str, Any]


class MomentCheck:
    """Checks the moments of one rank against ``run.json``.

    Parameters
    ----------
    path
        Folder of the recording, for messages.
    run
        Content of ``run.json``.
    layouts
        Layout of every bulk array by path.
    rank, world
        Which of how many processes this is.
    """

    def __init__(
        self, path: Path, run: Mapping[str, Json], layouts: Mapping[str, BulkLayout], *, rank: int, world: int
    ) -> None:
        self._path = path
        self._fingerprint = run["fingerprint"]
        self._parts = parts(run)
        self._layouts = layouts
        self._rank, self._world = rank, world

    def __call__(self, moment: Moment) -> CheckedMoment:
        """Return the moment as it will be stored.

        Raises
        ------
        InvalidArgumentError
            A site is missing, a shape or dtype differs, a name cannot be stored.
        """
        given = {"probe": moment.probe, "weights": moment.weights, "batches": moment.batches}
        if self._rank:
            given["weights"] = None
        skipped = tuple(stream for stream in moment.skipped if not (self._rank and stream == "weights"))
        for stream in skipped:
            if not self._fingerprint.get(_KINDS.get(stream, "")) or given[stream] is not None:
                raise InvalidArgumentError(f"{self._path}: {stream!r} cannot be skipped; it is given or not recorded.")
        contents: list[PartData] = []
        if moment.probe is not None:
            contents += self._probe(moment.probe)
        if given["weights"] is not None:
            contents += [
                PartData(layout, 0, self._fitting(name, layout, array, layout.shape))
                for name, layout, array in self._match("weights", given["weights"])
            ]
        samples: tuple[int, ...] = ()
        if moment.batches is not None:
            contents += self._batches(moment)
            if self._rank < self._parts and moment.rows:
                samples = (int(moment.rows),)
        return CheckedMoment(
            moment=moment,
            streams=tuple(stream for stream in STREAMS if given[stream] is not None or stream in skipped),
            contents=tuple(contents),
            samples=samples,
            health=self._health(moment.health, "sites"),
            batch_health=self._health(moment.batch_health, "batches"),
            metrics={} if self._rank else _metrics(moment),
        )

    def _match(self, kind: str, given: Mapping[str, Any]) -> Iterator[tuple[str, BulkLayout, NDArray[Any]]]:
        """Yield name, layout and array of each entry of a kind; all must be there, and no others."""
        entries = self._fingerprint.get(kind, {})
        if given.keys() != entries.keys():
            names = sorted(given.keys() ^ entries.keys())
            raise InvalidArgumentError(
                f"{self._path}: a moment must hold each of its {kind} once; differs in {names[0]}."
            )
        if not entries:
            raise InvalidArgumentError(f"{self._path}: has no {kind} to record; give None.")
        for name, entry in entries.items():
            yield name, self._layouts[entry["path"]], np.asarray(given[name])

    def _fitting(self, name: str, layout: BulkLayout, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return an array that has the dtype on disk and this shape."""
        if array.shape != shape or array.dtype != layout.stored.newbyteorder("="):
            raise InvalidArgumentError(
                f"{self._path}: {name} must be {layout.stored.name} of shape {shape}, "
                f"got {array.dtype.name} of shape {array.shape}."
            )
        return array

    def _probe(self, given: Mapping[str, NDArray[Any]]) -> Iterator[PartData]:
        """Yield this rank's parts of a probe snapshot."""
        mine = share_of(self._rank, self._world, self._parts)
        if not mine and not given:
            return
        for name, layout, array in self._match("sites", given):
            if not layout.shape:
                yield from (PartData(layout, 0, self._fitting(name, layout, array, ())) for part in mine if part == 0)
                continue
            own = [part for part in mine if part < layout.parts]
            ends = np.cumsum([layout.part_shape(part)[0] for part in own], dtype=np.int64)
            whole = (int(ends[-1]) if own else 0, *layout.shape[1:])
            self._fitting(name, layout, array, whole)
            for part, end in zip(own, ends, strict=True):
                yield PartData(layout, part, array[end - layout.part_shape(part)[0] : end])

    def _batches(self, moment: Moment) -> Iterator[PartData]:
        """Yield this rank's part of a snapshot of batches: none without samples, or where there is no part for it."""
        if not self._fingerprint.get("batches"):
            raise InvalidArgumentError(f"{self._path}: has no batches to record; give None.")
        size = int(self._fingerprint.get("batch_size", 0))
        if not 0 <= moment.rows <= size:
            raise InvalidArgumentError(
                f"{self._path}: a batch of {moment.rows} samples does not fit the batch size of {size}."
            )
        if not moment.rows or self._rank >= self._parts:
            return
        ids = np.full(moment.rows, -1, np.int64) if moment.sample_ids is None else moment.sample_ids
        given = {"batches": moment.batches or {}, "samples": {"sample_id": ids}}
        if moment.gradients is not None or "gradients" in self._fingerprint:
            given["gradients"] = moment.gradients or {}
        for kind, arrays in given.items():
            for name, layout, array in self._match(kind, arrays):
                shape = (moment.rows * (layout.chunk[0] // size), *layout.shape[1:])
                yield PartData(layout, self._rank, self._fitting(name, layout, array, shape))

    def _health(self, given: Mapping[str, Mapping[str, int]], kind: str) -> dict[str, dict[str, int]]:
        """Return the non-zero counts of a moment."""
        unknown = given.keys() - self._fingerprint.get(kind, {}).keys()
        problems = {problem for counts in given.values() for problem in counts} - set(HEALTH_PROBLEMS)
        if unknown or problems:
            raise InvalidArgumentError(f"{self._path}: health of {sorted(unknown | problems)[0]!r} is unknown.")
        return {
            site: kept
            for site, counts in given.items()
            if (kept := {problem: int(count) for problem, count in counts.items() if count})
        }


def _metrics(moment: Moment) -> dict[str, Any]:
    """Return the metrics of a moment as its record holds them."""
    for name in (*moment.step_metrics, *moment.epoch_metrics):
        encode_component(name)  # raises now: once committed, a name that no array can have would block every view
    steps: dict[str, Any] = {}
    for name, (numbers, values) in moment.step_metrics.items():
        if len(numbers) != len(values):
            raise InvalidArgumentError(f"metric {name!r}: {len(numbers)} steps but {len(values)} values.")
        if len(numbers):
            steps[name] = {"step": [int(number) for number in numbers], "value": [float(value) for value in values]}
    epochs = {name: float(value) for name, value in moment.epoch_metrics.items()}
    return {kind: series for kind, series in (("step", steps), ("epoch", epochs)) if series}
