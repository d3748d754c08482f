"""A recorder under somebody else's loop: a trainer says what has happened, in its own words and its own order.

What every callback shares. The rules to keep: until the trainer's first step every error is the trainer's to see; from
then on nothing that a callback does raises (`shielded`); and whatever the trainer is about to write a checkpoint of can
be continued from, so it is committed before.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import DynomeError, FingerprintError, InvalidArgumentError, InvalidDataError
from dynome_recorder.recorder import Recorder
from dynome_recorder.shield import Blame, Shield

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class Driver:
    """Opens, feeds and closes the recorder of one training run.

    Parameters
    ----------
    path
        The run directory.
    options
        Arguments of `Recorder` but the path and the model.

    Attributes
    ----------
    completed, step
        Epochs and optimizer steps that are done. The callback counts steps, `after_epoch` epochs, also when recording
        has stopped: checkpoints go on, and hold them.
    """

    def __init__(self, path: str | Path, options: Mapping[str, Any]) -> None:
        if unknown := {"model", "path"} & options.keys():
            raise InvalidArgumentError(f"{sorted(unknown)[0]}: the trainer's own is taken; leave it out.")
        self.path = path
        self.options = dict(options)
        self.recorder: Recorder | None = None
        self.completed = 0
        self.step = 0
        self._under_way = self._stepped = False
        self._shield: Shield | None = None  # from the start of training on, also when recording has stopped

    @property
    def is_open(self) -> bool:
        """Whether a recording is being made."""
        return self.recorder is not None

    def open(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None,
        completed: int,
        step: int,
        at_end: bool,
        way_out: str,
        forward: Any = None,
        autocast: Any = None,
    ) -> None:
        """Open the recording where the trainer stands, and take the first snapshot.

        Parameters
        ----------
        model, optimizer
            What the trainer trains.
        completed, step
            Epochs and optimizer steps that the trainer has done: 0 and 0 unless it goes on from a checkpoint.
        at_end
            Whether it stands at the end of an epoch, not inside one.
        way_out
            How a checkpoint is given to this trainer, for the message.
        forward, autocast
            Used where the options have none.

        Raises
        ------
        DynomeError
            Whatever would stop the recording. Nothing is left open.
        """
        self.close(None)
        options = {"optimizer": optimizer, "forward": forward, "autocast": autocast} | self.options
        recorder = Recorder(self.path, model, **options)
        recorder.__enter__()
        try:
            self.completed = self._start(recorder, completed, step, at_end=at_end, way_out=way_out)
        except BaseException as error:
            recorder.__exit__(type(error), error, None)
            raise
        self.recorder, self.step = recorder, step
        self._under_way = self._stepped = False
        self._shield, self._strict = Shield(recorder.path), bool(options.get("strict", False))
        if self.completed < completed:
            # The checkpoint was written after the last step of an epoch and before its end.
            self.begin()
            self.after_epoch({}, number=completed)

    def _start(self, recorder: Recorder, completed: int, step: int, *, at_end: bool, way_out: str) -> int:
        recorded = recorder.committed_epoch
        if step == 0:
            if recorded:
                raise FingerprintError(
                    f"{recorder.path}: is recorded to epoch {recorded}, and training starts anew; {way_out}, or record"
                    " to another folder."
                )
            return recorder.start()
        try:
            return recorder.start(epoch=completed, step=step)
        except FingerprintError:
            if not at_end or recorded is None or completed <= recorded:
                raise
        # The recording had stopped before training did: what it missed is a gap.
        recorder.resume_from(completed, step=step)
        return recorder.start()

    @contextlib.contextmanager
    def shielded(self, doing: str) -> Iterator[None]:
        """Stop recording, loudly, where the block fails, and let training go on; ``strict=True`` lets it raise."""
        shield = self._shield
        if shield is None:
            yield
            return
        # The first recorded batch is a canary: what it finds is told as an error.
        raising = () if self._stepped else (InvalidDataError,)
        try:
            yield
        except Exception as error:
            if self._strict or isinstance(error, raising):
                raise
            shield.stop_recording(error, Blame(doing, self.completed, self.step))
            self.close(None)

    def begin(self) -> None:
        """Say that a batch is about to be trained on; the first of an epoch begins it."""
        if self.recorder is not None and not self._under_way:
            self._under_way = True
            self.recorder.begin(self.completed + 1)

    def after_step(self, metrics: Mapping[str, Any], *, sample_ids: Any = None) -> None:
        """Record the optimizer step that `step` already counts."""
        if self.recorder is not None:
            self.begin()
            self.recorder.step(sample_ids=sample_ids, **usable(metrics))
        self._stepped = True

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Add metrics of the step that was noted last."""
        if self.recorder is not None and self.step:
            self.recorder.note(**usable(metrics))

    def after_epoch(self, metrics: Mapping[str, Any], *, number: int) -> None:
        """Say that epoch ``number``, counted from 1, is complete; one that is recorded already stays as it is."""
        if number <= self.completed:
            return
        self.begin()
        self.completed, self._under_way = number, False
        if self.recorder is not None:
            self.recorder.epoch(**usable(metrics))

    def before_checkpoint(self) -> None:
        """Commit, so that training can be continued from the checkpoint that the trainer is about to write."""
        if self.recorder is not None:
            if self._under_way:
                self.recorder.mark()
            else:
                self.recorder.flush()

    def close(self, error: BaseException | None) -> None:
        """Close the recording, if one is open; an error of the trainer is passed on to nobody."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        try:
            recorder.__exit__(type(error) if error is not None else None, error, None)
        except DynomeError as own:
            if self.options.get("strict", False):
                raise
            logger.warning("%s: could not be closed: %s", recorder.path, own)


def usable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics without the names that are the recording's own counters: trainers report them too."""
    return {name: value for name, value in metrics.items() if name not in ("epoch", "step", "sample_ids")}
