"""Taking snapshots: what is due at a moment is copied into slots, in the training thread, and finished in another.

The rule to keep: nothing in `MomentTaker` waits for a device, reads a tensor's value or touches the disk, unless no
buffer is left. What does is in `Taken.build`, which the writer thread runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.background import Pending
from dynome_recorder.capture.batches import BatchWatcher, gradient_key
from dynome_recorder.capture.health import read_health
from dynome_recorder.capture.parameters import digest_state, hash_parameters, state_tensors
from dynome_recorder.capture.probing import capture, site_specs
from dynome_recorder.capture.thinning import Thinning
from dynome_recorder.capture.transfer import BufferSpec, RecorderStopped
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.storage.run import share_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dynome_recorder.capture.transfer import Slot, SlotPool
    from dynome_recorder.distributed import Place
    from dynome_recorder.metrics import StepMetrics, Value
    from dynome_recorder.plan import Plan
    from dynome_recorder.settings import Settings
    from dynome_recorder.storage.writer import Moment

Failure = Callable[[], "BaseException | None"]

_WHOLE = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"})


class MomentTaker:
    """Copies what is due into slots; one per session.

    Parameters
    ----------
    settings, plan
        What is recorded.
    place
        Which process this is.
    pool
        Where slots come from.
    failure
        What stopped the writer thread, if anything did; asked while waiting for a slot.
    """

    def __init__(self, settings: Settings, plan: Plan, place: Place, pool: SlotPool, *, failure: Failure) -> None:
        self.settings = settings
        self.layouts = plan.sites
        self.weights = {weight.name: BufferSpec(weight.shape, weight.dtype) for weight in plan.weights}
        self.pool = pool
        self.failure = failure
        self.leads = place.leads
        size = -(-plan.samples // plan.parts)
        share = share_of(place.rank, place.world, plan.parts)
        self.rows = slice(min(share.start * size, plan.samples), min(share.stop * size, plan.samples))
        self.watcher: BatchWatcher | None = None
        if settings.batch_size is not None and place.rank < plan.parts:
            self.watcher = BatchWatcher(
                settings.called, plan.sites, gradients=settings.gradients, rows=settings.batch_size
            )
        self.thinning = {stream: Thinning() for stream in settings.schedules}
        # Most schedules count epochs: a step then asks nothing.
        self.counts_steps = any(schedule.counts_steps for schedule in settings.schedules.values())
        self.snapshots: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._batch: Batch | None = None

    def attach(self) -> None:
        """Put in place what has to be there before a compiled model is called for the first time."""
        if self.watcher is not None:
            self.watcher.attach()

    def detach(self) -> None:
        """Remove every hook; the slot of a batch under way goes back."""
        if self.watcher is not None:
            self.watcher.detach()
        batch, self._batch = self._batch, None
        if batch is not None and batch.slot is not None:
            batch.slot.release()

    # The batches stream

    def expect_batch(self, step: int) -> None:
        """Before the forward pass of a step: watch it where its batch is due."""
        if "batches" not in self.settings.schedules or not self.settings.schedules["batches"].due_step(step):
            return
        if self.watcher is None:  # more ranks than the recording has parts: the others' batches are the whole
            self._batch = Batch(None, is_ours=False)
            return
        assert self.settings.batch_size is not None
        specs = site_specs(self.layouts, self.settings.batch_size)
        if self.settings.gradients:
            specs |= {gradient_key(name): spec for name, spec in specs.items()}
        slot = self._acquire("batches", specs)
        self._batch = Batch(slot)
        if slot is not None:
            self.watcher.arm(slot)

    def end_batch(self, sample_ids: Any) -> None:
        """After a step: take what was watched.

        Raises
        ------
        InvalidDataError
            If a site did not fire, or not with the planned shape; or the sample ids do not fit.
        """
        batch = self._batch
        if batch is None:
            return
        batch.ended = True
        if batch.slot is None or self.watcher is None:
            return
        collected = self.watcher.collect()
        batch.samples = collected.rows
        batch.sample_ids = check_sample_ids(sample_ids, collected.rows)
        batch.slot.extras.update(collected.extras)
        rows = {layout.site.name: collected.rows * layout.rows_per_sample for layout in self.layouts}
        batch.slot.send(rows | {gradient_key(name): count for name, count in rows.items()})

    @property
    def has_batch(self) -> bool:
        """Whether the step that has just ended has a batch to commit, recorded or left out."""
        return self._batch is not None and self._batch.ended

    # All streams

    def due(self, *, epoch: int, step: int, complete: bool) -> list[str]:
        """Return of which of probe and weights a snapshot is due at the end of an epoch (``complete``) or a step."""
        return [
            stream
            for stream, schedule in self.settings.schedules.items()
            if stream != "batches" and (schedule.due_epoch(epoch) if complete else schedule.due_step(step))
        ]

    def take(
        self,
        *,
        epoch: int,
        step: int,
        complete: bool,
        hashed: bool,
        lost: bool = False,
        due: Sequence[str] | None = None,
    ) -> Taken:
        """Copy what is due at this moment.

        Parameters
        ----------
        complete
            Whether an epoch ends here.
        hashed
            Whether training can resume here: the parameters' hash is kept.
        lost
            The moment is past, what was due is noted as left out.
        due
            Of which of probe and weights to take a snapshot; what the schedules say if None.
        """
        if due is None:
            due = self.due(epoch=epoch, step=step, complete=complete)
        batch: Batch | None = None
        if (
            self.has_batch
        ):  # at the end of an epoch the next step's batch may be watched already; it is not this moment's
            batch, self._batch = self._batch, None
        taken = Taken(self.pool, epoch, step, complete, batch=batch)
        try:
            if taken.batch is not None and taken.batch.is_ours:
                self._note("batches", taken.batch.slot, taken)
            if "probe" in due:
                taken.probe = None if lost else self._take_probe()
                self._note("probe", taken.probe, taken)
            if self.leads:
                self._take_state(taken, weights="weights" in due, hashed=hashed, lost=lost)
        except BaseException:
            taken.release()
            raise
        return taken

    def _take_probe(self) -> Slot | None:
        specs = site_specs(self.layouts, self.rows.stop - self.rows.start)
        slot = self._acquire("probe", specs)
        if slot is None:
            return None
        settings = self.settings
        try:
            if self.rows.start < self.rows.stop:
                capture(
                    settings.model,
                    self.layouts,
                    probe=settings.probe,
                    forward=settings.forward,
                    slot=slot,
                    rows=self.rows,
                    autocast=settings.autocast,
                )
            slot.send()
        except BaseException:
            slot.release()
            raise
        return slot

    def _take_state(self, taken: Taken, *, weights: bool, hashed: bool, lost: bool) -> None:
        """Copy the parameters, and where their hash is kept, the saved buffers too."""
        if not weights and not hashed:
            return
        state = state_tensors(self.settings.model)
        names = [name for name, one in self.settings.model.named_parameters() if one.numel()] if weights else []
        wanted = state if hashed else {name: state[name] for name in names}
        specs = {
            name: BufferSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in wanted.items()
        }
        if weights:
            self._check_weights({name: specs[name] for name in names})
        slot = None if lost else self._acquire("weights", specs, wants=weights)
        if slot is not None:
            slot.copy_from(wanted)
            taken.state, taken.hashed = slot, hashed
        elif hashed:
            taken.digest = hash_parameters(self.settings.model)
        if weights:
            taken.weights = names
            self._note("weights", slot, taken)

    def _check_weights(self, found: Mapping[str, BufferSpec]) -> None:
        if found == self.weights:
            return
        name = next(name for name in {**self.weights, **found} if found.get(name) != self.weights.get(name))
        then, now = (
            f"{spec.dtype} of shape {spec.shape}" if spec is not None else "not there"
            for spec in (self.weights.get(name), found.get(name))
        )
        raise InvalidDataError(
            f"weights: parameter {name!r} was {then} when the recording began, and is {now}; a model whose weights are"
            " recorded must keep its parameters: change it before entering the recorder."
        )

    def _acquire(self, stream: str, specs: Mapping[str, BufferSpec], *, wants: bool = True) -> Slot | None:
        """Return a slot, or None where the buffers are full and the snapshot is to be left out."""
        if self.settings.on_full == "block":
            return self._lend(specs, block=True)
        thinning = self.thinning.get(stream) if self.settings.on_full == "thin" and wants else None
        if thinning is not None and not thinning.wants():
            return None
        idle = self.pool.idle
        slot = self._lend(specs, block=False)
        if thinning is not None:
            thinning.note(full=slot is None, idle=idle)
        return slot

    def _lend(self, specs: Mapping[str, BufferSpec], *, block: bool) -> Slot | None:
        try:
            return self.pool.acquire(specs, block=block, failure=self.failure)
        except RecorderStopped as error:
            raise self.failure() or error from None  # why it stopped says more than that it did

    def _note(self, stream: str, slot: Slot | None, taken: Taken) -> None:
        if slot is None:
            self.skipped[stream] += 1
            taken.skipped.append(stream)
        else:
            self.snapshots[stream] += 1


@dataclass
class Batch:
    """The batch of the step under way.

    Attributes
    ----------
    slot
        Where it is copied to; None where it is left out.
    is_ours
        False on a rank whose batches the recording has no part for.
    ended
        Whether its step is done.
    samples, sample_ids
        How many samples it had, and which they were: whole numbers, shape (sample,); None where nobody said.
    """

    slot: Slot | None
    is_ours: bool = True
    ended: bool = False
    samples: int = 0
    sample_ids: Any = None


@dataclass
class Taken:
    """Everything of one moment, on its way to the writer thread.

    Attributes
    ----------
    probe, batch, state
        Slots of the streams; None where there is nothing.
    weights
        Names of the recorded parameters in ``state``; empty where weights are not recorded at this moment.
    hashed, digest
        Whether ``state`` is the whole state, whose hash is kept; or the hash, where no buffer was left for it.
    skipped
        Streams that were due and are left out.
    """

    pool: SlotPool
    epoch: int
    step: int
    complete: bool
    probe: Slot | None = None
    batch: Batch | None = None
    state: Slot | None = None
    weights: Sequence[str] = ()
    hashed: bool = False
    digest: str = ""
    skipped: list[str] = field(default_factory=list)

    @property
    def slots(self) -> list[Slot]:
        """The slots that it holds."""
        held = [self.probe, self.batch.slot if self.batch is not None else None, self.state]
        return [slot for slot in held if slot is not None]

    def release(self) -> None:
        """Give all slots back."""
        for slot in self.slots:
            slot.release()

    def pending(self, steps: StepMetrics, metrics: Mapping[str, Value]) -> Pending:
        """Return what the writer thread gets; from here on it releases the slots."""
        from dynome_recorder.metrics import to_numbers

        slots = self.slots
        for slot in slots:
            self.pool.hand_over(slot)
        backend = self.pool.backend
        known = backend.record_event(backend.current_stream()) if backend.stages else None

        def wait() -> None:
            # Metrics are read by another thread: what the training stream computed must be there first.
            if known is not None:
                backend.synchronize(known)

        def read_steps() -> Mapping[str, tuple[Sequence[int], Sequence[float]]]:
            wait()
            return steps.drain()

        def read_epoch() -> Mapping[str, float]:
            wait()
            return to_numbers(metrics)

        return Pending(
            epoch=self.epoch,
            step=self.step,
            epoch_complete=self.complete,
            build=self.build,
            release=self.release,
            nbytes=sum(slot.nbytes for slot in slots),
            step_metrics=read_steps,
            epoch_metrics=read_epoch,
        )

    def build(self) -> Moment:
        """Wait for the copies and make the moment; in the writer thread."""
        from dynome_recorder.storage.writer import Moment

        state = self.state.arrays() if self.state is not None else {}
        digest = self.digest
        if self.state is not None and self.hashed:
            digest = digest_state(state, {name: spec.dtype for name, spec in self.state.specs.items()})
        fields: dict[str, Any] = {}
        if self.batch is not None and self.batch.slot is not None:
            arrays = self.batch.slot.arrays()
            gradients = {name: arrays[gradient_key(name)] for name in arrays if gradient_key(name) in arrays}
            sites = [name for name in arrays if name in gradients or not gradients]
            fields = {
                "batches": {name: arrays[name] for name in sites},
                "gradients": gradients or None,
                "rows": self.batch.samples,
                "sample_ids": read_sample_ids(self.batch.sample_ids),
                "batch_health": read_health(self.batch.slot, sites=sites),
            }
        elif self.batch is not None and not self.batch.is_ours:
            fields = {"batches": {}}
        return Moment(
            epoch=self.epoch,
            step=self.step,
            epoch_complete=self.complete,
            parameters=digest,
            probe=self.probe.arrays() if self.probe is not None else None,
            weights={name: state[name] for name in self.weights} if self.state is not None and self.weights else None,
            health=read_health(self.probe) if self.probe is not None else {},
            skipped=tuple(self.skipped),
            **fields,
        )


def check_sample_ids(sample_ids: Any, samples: int) -> Any:
    """Return the ids of a batch's samples as they are kept until they are written; a tensor's values are not read.

    Raises
    ------
    InvalidDataError
        If they are not one whole number per sample.
    """
    if sample_ids is None:
        return None
    is_tensor = hasattr(sample_ids, "detach")
    given: Any
    try:
        given = sample_ids if is_tensor else np.array(sample_ids)
    except ValueError:  # lists of different lengths
        given = np.array(None)
    if not is_tensor and given.dtype == np.uint64 and given.max(initial=0) < 2**63:
        given = given.astype(np.int64)
    fits = str(given.dtype).removeprefix("torch.") in _WHOLE and tuple(given.shape) == (samples,)
    if not fits:
        raise InvalidDataError(
            f"sample_ids must be one whole number below 2**63 for each of the {samples} samples of the step; got"
            f" {given.dtype} of shape {tuple(given.shape)}."
        )
    return given.detach().clone() if is_tensor else given


def read_sample_ids(kept: Any) -> NDArray[np.int64] | None:
    """Return the ids of a batch's samples, int64, shape (sample,); None where nobody said; in the writer thread."""
    if kept is None:
        return None
    values = kept.cpu().numpy() if hasattr(kept, "cpu") else kept
    return np.asarray(values).astype(np.int64)
