"""Open a recording for analysis: lazy, labelled, and only what is committed."""

from __future__ import annotations

import fnmatch
import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr

from dynome_analysis.lazy import lazy_snapshots
from dynome_analysis.provenance import provenance
from dynome_analysis.reading import JointArray, SnapshotReader, distinct_snapshots
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.storage.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_recorder.storage.manifest import Manifest

__all__ = ["Recording", "SmallBatchWarning", "Stream", "open_recording"]


Stream = Literal["probe", "batches"]


class SmallBatchWarning(UserWarning):
    """The batches have few samples for so many units: their connectomes are mostly noise."""


def open_recording(path: str | Path, *, stream: Stream = "probe") -> Recording:
    """Open a recording for analysis.

    Parameters
    ----------
    path : path-like
        The folder that the recorder wrote. Nothing in it is changed.
    stream : {"probe", "batches"}
        What its activations are: of the fixed samples of the probe, or of the training batches themselves, as every
        analysis then sees them.

    Returns
    -------
    Recording
        A view of what was committed when it was opened; arrays are read only when they are computed.

    Raises
    ------
    InvalidArgumentError
        An unknown stream, or one that was not recorded.
    RecordingNotFoundError
        There is no recording at ``path``.
    UnsupportedVersionError
        It was written by a newer major version of the format.
    CorruptRecordingError
        The commit log is damaged.
    """
    if stream not in get_args(Stream):
        raise InvalidArgumentError(f"stream must be one of {', '.join(get_args(Stream))}; got {stream!r}")
    manifest = read_manifest(Path(path))
    if stream == "batches" and not manifest.batches:
        raise InvalidArgumentError(
            f"stream: {path} holds no training batches; record them with Recorder(batches=every(steps=...), ...)"
        )
    return Recording(Path(path), manifest, stream)


@dataclass(frozen=True)
class Recording:
    """What a training run committed, by name; made by `open_recording`.

    Attributes
    ----------
    path : Path
    manifest : Manifest
        The commit log behind it.
    stream : {"probe", "batches"}
        Where its activations come from.
    """

    path: Path
    manifest: Manifest = field(repr=False)
    stream: Stream = "probe"

    @property
    def id(self) -> str:
        """Unique id of the run."""
        return str(self.manifest.run_id)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the recorded sites, in the order of the forward pass."""
        return tuple(self._described)

    @property
    def _described(self) -> dict[str, dict[str, Any]]:
        return self.manifest.sites if self.stream == "probe" else self.manifest.batches

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the recorded parameters."""
        return tuple(self.manifest.weights)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the user said about the run."""
        return dict(self.manifest.run.get("hyperparameters") or {})

    @property
    def epochs(self) -> NDArray[np.int64]:
        """Completed epochs at every snapshot; int64, shape (snapshot,). Epoch 0 is the untrained network."""
        return np.array([record.epoch for record, _ in distinct_snapshots(self.manifest, self.stream)], np.int64)

    @property
    def weights_epochs(self) -> NDArray[np.int64]:
        """Completed epochs at every snapshot of the weights; int64, shape (snapshot,)."""
        return np.array([record.epoch for record, _ in distinct_snapshots(self.manifest, "weights")], np.int64)

    @property
    def epoch_metrics(self) -> xr.Dataset:
        """Metrics per epoch, float64 on dimension ``epoch``; NaN where a metric was not given."""
        return _metrics(self.manifest.epoch_metrics(), "epoch", self.id)

    @property
    def step_metrics(self) -> xr.Dataset:
        """Metrics per optimizer step, float64 on dimension ``step``; NaN where a metric was not given."""
        return _metrics(self.manifest.step_metrics(), "step", self.id)

    def choose_sites(self, sites: Sequence[str] | str | None = None) -> tuple[str, ...]:
        """Return the sites that match names or shell patterns, in recorded order; all of them for None.

        Raises
        ------
        InvalidArgumentError
            Nothing was asked for, or a pattern matches no site.
        """
        if sites is None:
            return self.sites
        if not isinstance(sites, Iterable):
            raise InvalidArgumentError(f"sites must be a name, a pattern, or a list of them; got {sites!r}")
        patterns = [sites] if isinstance(sites, str) else [str(site) for site in sites]
        for pattern in patterns:
            if not any(_matches(site, pattern) for site in self.sites):
                raise InvalidArgumentError(
                    f"sites: {pattern!r} matches no site of {self.path}; it has {', '.join(self.sites)}"
                )
        if not patterns:
            raise InvalidArgumentError(f"sites must name at least one site of {self.path}: {', '.join(self.sites)}")
        return tuple(site for site in self.sites if any(_matches(site, pattern) for pattern in patterns))

    def reader(self, sites: Sequence[str] | str | None = None) -> SnapshotReader:
        """Return what reads the joint activations of one snapshot; it can travel to another process."""
        described = self._described
        chosen = {site: described[site] for site in self.choose_sites(sites)}
        reader = SnapshotReader.of(self.manifest, self.stream, chosen)
        if len(reader.shape) != 2:
            raise InvalidDataError(
                f"{self.path}: activations must be (sample, unit) at each snapshot, not {reader.dimensions}: "
                "choose other sites, or record them with a reduction"
            )
        return reader

    def site_paths(self, sites: Iterable[str]) -> list[str]:
        """Return where the activations of sites lie, below ``store.zarr``."""
        described = self._described
        return [str(described[site]["path"]) for site in sites]

    def warn_of_small_batches(self, units: int) -> None:
        """Warn where the batches have fewer samples than there are units to correlate."""
        if self.stream == "probe":
            return
        samples = min((sum(record.samples) for record, _ in distinct_snapshots(self.manifest, self.stream)), default=0)
        if samples < units:
            warnings.warn(
                f"{self.path}: batches of {samples} samples say little of the correlations of {units} units; choose"
                " fewer sites or units, or analyse the probe",
                SmallBatchWarning,
                stacklevel=3,
            )

    def activations(self, sites: Sequence[str] | str | None = None) -> xr.DataArray:
        """Return the activations of all chosen sites side by side, lazily.

        Parameters
        ----------
        sites : str or sequence of str, optional
            Names or shell patterns; all sites by default.

        Returns
        -------
        DataArray
            float32 (float64 where a site is), (snapshot, sample, unit), one Dask chunk per snapshot; a choice of units
            or samples, ``[:, :, units]``, reads those only and several snapshots in a chunk. Coordinates
            ``epoch`` and ``step`` on snapshot, ``site`` on unit. float16 and bfloat16 are widened without loss. Of
            training batches, samples that a smaller batch does not have are NaN, and ``sample_id`` (int64, snapshot,
            sample) says which samples they were, -1 for none and for unknown.

        Raises
        ------
        InvalidArgumentError
            A pattern matches no site.
        InvalidDataError
            Nothing is committed yet, or the sites have different numbers of samples.
        CorruptRecordingError
            When computed: a stored file is missing, truncated or changed.
        """
        reader = self.reader(sites)
        coordinates: dict[str, Any] = {"site": ("unit", reader.labels)}
        if reader.there is not None:
            identity = self.manifest.array("batches/sample_id")
            ids = np.stack([np.asarray(identity[index]) for index in reader.indices])
            coordinates["sample_id"] = (("snapshot", "sample"), np.repeat(ids, reader.shape[0] // ids.shape[1], axis=1))
        return self._lazy(reader, ("sample", "unit"), coordinates, "activations")

    def weight(self, parameter: str) -> xr.DataArray:
        """Return one recorded parameter over the snapshots of the weights, lazily.

        Parameters
        ----------
        parameter : str
            One of `parameters`.

        Returns
        -------
        DataArray
            (snapshot, ...) with the dimensions that the recorder named, one Dask chunk per snapshot; coordinates
            ``epoch`` and ``step`` on snapshot.

        Raises
        ------
        InvalidArgumentError
            No such parameter was recorded.
        CorruptRecordingError
            When computed: a stored file is missing, truncated or changed.
        """
        if parameter not in self.parameters:
            listed = ", ".join(self.parameters) or "no weights: record them with weights=every(epochs=1)"
            raise InvalidArgumentError(f"parameter {parameter!r} was not recorded in {self.path}; it has {listed}")
        reader = SnapshotReader.of(self.manifest, "weights", {parameter: self.manifest.weights[parameter]})
        return self._lazy(reader, reader.dimensions, {}, parameter)

    def _lazy(
        self, reader: SnapshotReader, dimensions: tuple[str, ...], coordinates: Mapping[str, Any], name: str
    ) -> xr.DataArray:
        # By where the arrays lie: a site has one name in both streams, and a parameter may have the name of a site.
        paths = [array.path for array in reader.arrays.values()]
        key = repr((str(self.path.absolute()), self.id, self.manifest.digest, name, paths))
        token = hashlib.sha256(key.encode()).hexdigest()[:32]
        return xr.DataArray(
            lazy_snapshots(JointArray(reader), name=f"{name}-{token}"),
            dims=("snapshot", *dimensions),
            coords={
                "epoch": ("snapshot", np.array(reader.epochs, np.int64)),
                "step": ("snapshot", np.array(reader.steps, np.int64)),
                **coordinates,
            },
            name=name,
            attrs=provenance("read", {"arrays": list(reader.arrays)}, recording=self.id) | {"path": str(self.path)},
        )

    def _facts(self) -> dict[str, str]:
        epochs, weights = self.epochs, self.weights_epochs
        return {
            "folder": str(self.path),
            "id": self.id,
            "sites": ", ".join(self.sites),
            self.stream: f"{epochs.size} snapshots" + (f", epochs {epochs[0]} to {epochs[-1]}" if epochs.size else ""),
            "weights": f"{weights.size} snapshots of {len(self.parameters)} parameters",
            "metrics": ", ".join(self.manifest.epoch_metrics()) or "none",
        }

    def __repr__(self) -> str:
        """Return a few lines for people."""
        return "Recording\n" + "\n".join(f"  {name:<8} {value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table><caption>Recording</caption>{rows}</table>"


def _matches(site: str, pattern: str) -> bool:
    """Exact names win over patterns, because a site may itself be called ``layers[0]``."""
    return site == pattern or fnmatch.fnmatchcase(site, pattern)


def _metrics(
    series: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]], dimension: str, recording: str
) -> xr.Dataset:
    """Put series that may know different epochs (or steps) on one sorted axis."""
    known = [np.asarray(positions, np.int64) for positions, _ in series.values()]
    axis = np.unique(np.concatenate(known)) if known else np.empty(0, np.int64)
    columns = {}
    for name, (positions, values) in series.items():
        column = np.full(axis.size, np.nan)
        column[np.searchsorted(axis, positions)] = values
        columns[name] = (dimension, column)
    return xr.Dataset(columns, coords={dimension: axis}, attrs=provenance("metrics", {}, recording=recording))
