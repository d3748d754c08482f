"""What a recording will hold and cost, before anything is written.

A plan is frozen data; its text, rich and HTML forms (`plan_forms`) show the same rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console, ConsoleOptions, RenderResult

    from dynome_recorder.capture.reductions import SiteLayout
    from dynome_recorder.schedule import Schedule

WRITE_BYTES_PER_SECOND = 300e6
"""What the expected time of writing assumes, compression and checksums included. One thread measured 380-680 MB/s into
a local disk; a shared file system may be much slower."""


@dataclass(frozen=True)
class PlannedWeight:
    """One recorded parameter: its first name, shape, dtype, and the other names of a tied one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a `Recorder` is going to write; sizes are before compression.

    Attributes
    ----------
    path
        The run directory.
    continues
        Whether a recording is there already.
    sites
        The recorded sites with their shapes, units and dtypes.
    weights
        The recorded parameters; empty where weights are not recorded.
    probe
        Text of the probe; ``samples`` is its size.
    schedules
        Per stream, when it is recorded.
    epochs, steps_per_epoch
        Length of the run that the totals are for; ``steps_per_epoch`` None where unknown.
    unhookable
        What cannot be recorded, with the reason.
    free_bytes
        Free space where the run directory is or will be.
    notes
        What was decided for the user at a site, with the reason.
    batch_size, gradients
        Samples that one process puts through the model per step, and whether gradients are recorded beside
        activations: of the batches stream. ``batch_size`` None without it.
    parts
        Processes that share the probe and each record their own batches.
    buffer_bytes
        Bytes of each process that may wait to be written; None where unknown.
    on_full
        What happens at a snapshot that has no room there: "block", "thin" or "skip".
    autocast
        Dtype of the autocast that the probe runs under; None: without.
    state_bytes
        Size of all parameters and buffers, which are copied at the end of each epoch to be digested.
    forward_seconds
        Measured time of the probe's forward passes in one process; None where not measured.
    """

    path: Path
    continues: bool
    sites: tuple[SiteLayout, ...]
    weights: tuple[PlannedWeight, ...]
    samples: int
    probe: str
    schedules: Mapping[str, Schedule]
    epochs: int
    steps_per_epoch: int | None
    unhookable: tuple[tuple[str, str], ...]
    free_bytes: int
    notes: tuple[tuple[str, str], ...] = ()
    batch_size: int | None = None
    gradients: bool = False
    parts: int = 1
    buffer_bytes: int | None = None
    on_full: str = "block"
    autocast: str | None = None
    state_bytes: int = 0
    forward_seconds: float | None = None

    @property
    def units(self) -> int:
        """Units of all sites together, which is the size of the joint connectome."""
        return sum(layout.units for layout in self.sites)

    @property
    def bytes_per_snapshot(self) -> dict[str, int]:
        """Bytes of one snapshot of each stream, of all processes together."""
        return {stream: self._bytes(stream, self._samples(stream)) for stream in self.schedules}

    @property
    def bytes_in_queue(self) -> dict[str, int]:
        """Bytes of one snapshot of each stream in the queue of one process, the first: it also writes the weights."""
        return {stream: self._bytes(stream, math.ceil(self._samples(stream) / self.parts)) for stream in self.schedules}

    @property
    def queue_depth(self) -> dict[str, int]:
        """Snapshots of each stream that fit the queue if nothing else is in it; empty where its size is unknown."""
        if self.buffer_bytes is None:
            return {}
        return {stream: self.buffer_bytes // max(1, size) for stream, size in self.bytes_in_queue.items()}

    @property
    def write_seconds(self) -> dict[str, float]:
        """Expected seconds of writing one snapshot of each stream, in the background, at `WRITE_BYTES_PER_SECOND`."""
        return {stream: size / WRITE_BYTES_PER_SECOND for stream, size in self.bytes_in_queue.items()}

    @property
    def snapshots(self) -> dict[str, int | None]:
        """Snapshots of each stream in the whole run; None where that needs unknown ``steps_per_epoch``."""
        return {
            stream: schedule.count(epochs=self.epochs, steps_per_epoch=self.steps_per_epoch)
            for stream, schedule in self.schedules.items()
        }

    @property
    def bytes_per_run(self) -> int | None:
        """Bytes of the whole run; None where the number of snapshots is unknown."""
        return self._total(self.bytes_per_snapshot)

    @property
    def files(self) -> int | None:
        """Data files of the whole run, one per snapshot, array and process; None where the number of snapshots is
        unknown."""
        kinds = 2 if self.gradients else 1
        shares = math.ceil(self.samples / math.ceil(self.samples / self.parts))  # a small probe has fewer
        files = {
            "probe": len(self.sites) * shares,
            "batches": (kinds * len(self.sites) + 1) * self.parts,  # and which samples they were
            "weights": len(self.weights),
        }
        return self._total({stream: files[stream] for stream in self.schedules})

    @property
    def fits(self) -> bool | None:
        """Whether the whole run fits on the disk before compression; None where its size is unknown."""
        return None if self.bytes_per_run is None else self.bytes_per_run <= self.free_bytes

    def _samples(self, stream: str) -> int:
        return {"probe": self.samples, "batches": (self.batch_size or 0) * self.parts}.get(stream, 0)

    def _bytes(self, stream: str, samples: int) -> int:
        if stream == "weights":
            return sum(weight.bytes for weight in self.weights)
        activations = samples * sum(layout.bytes_per_sample for layout in self.sites)
        if stream == "probe":
            return activations
        return activations * (2 if self.gradients else 1) + 8 * samples

    def _total(self, per_snapshot: Mapping[str, int]) -> int | None:
        total = 0
        for stream, count in self.snapshots.items():
            if count is None:
                return None
            total += count * per_snapshot[stream]
        return total

    def __str__(self) -> str:
        """Return the plan as plain text, 110 columns wide."""
        from dynome_recorder.plan_forms import to_text

        return to_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a table of sites, the totals, the warnings, and what cannot be hooked."""
        from dynome_recorder.plan_forms import to_rich

        return to_rich(self)

    def _repr_html_(self) -> str:
        from dynome_recorder.plan_forms import to_html

        return to_html(self)
