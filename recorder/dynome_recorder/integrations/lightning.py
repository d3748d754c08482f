"""Recording under Lightning: ``Trainer(callbacks=[DynomeCallback("runs/mlp", probe=Probe(train_set))])``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynome_recorder.capture.probe import Probe, call_model
from dynome_recorder.errors import InvalidArgumentError, MissingExtraError
from dynome_recorder.integrations.driver import Driver

try:
    # Two packages hold one Lightning: whichever the script has imported, so that the other is not loaded too.
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        from pytorch_lightning import Callback
    else:
        from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise MissingExtraError(
            'DynomeCallback needs Lightning; install it with: pip install "dynome[lightning]"'
        ) from error

if TYPE_CHECKING:
    from torch import nn

    from dynome_recorder.recorder import Recorder

__all__ = ["DynomeCallback"]

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


class DynomeCallback(Callback):  # type: ignore[misc]
    """Record a LightningModule while ``Trainer.fit`` trains it.

    Parameters
    ----------
    path
        The run directory.
    probe
        The fixed samples. The module's own ``forward`` runs them, in the trainer's precision.
    step_metrics
        Names of logged metrics that are recorded at every optimizer step, next to the loss. The loss is what
        ``training_step`` returned, over all accumulated batches; it is not read before the next commit. Naming others
        costs what ``trainer.callback_metrics`` costs.
    epoch_metrics
        Names of logged metrics that are recorded at the end of every epoch; None: all that were logged in it.
    sample_ids
        ``sample_ids(batch)`` returns what tells the samples of a training batch apart; for ``batches=``.
    **options
        Arguments of `Recorder`: sites, schedule, weights, batches, ...

    Attributes
    ----------
    recorder
        The recorder, while training is under way.

    Notes
    -----
    The recording starts before the first batch, with the untrained network as epoch 0; sanity checking is no part of
    it. A step is an optimizer step: accumulated batches are one. An epoch is recorded after its validation, when
    callbacks are told that it ended; what the module logs in its own ``on_train_epoch_end`` comes later, unseen.

    ``trainer.fit(..., ckpt_path=...)`` goes on in the recording where the checkpoint is: what was recorded after it is
    superseded. Everything up to a checkpoint is committed before the checkpoint is written.

    After the first step the callback never raises: it stops recording and says so, unless ``strict=True``.

    One device, several in one process per device (DDP): each process records its part of the probe. Strategies that
    shard the model are refused.

    Raises
    ------
    MissingExtraError
        On import, where Lightning is not installed.
    InvalidArgumentError
        For an argument of the wrong kind.

    Examples
    --------
    ::

        callback = DynomeCallback("runs/mlp-7", probe=Probe(train_set, size=1000), weights=every(epochs=1))
        Trainer(max_epochs=20, callbacks=[callback]).fit(module, train_loader, validation_loader)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        probe: Probe,
        step_metrics: Sequence[str] = (),
        epoch_metrics: Sequence[str] | None = None,
        sample_ids: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("step_metrics", step_metrics), ("epoch_metrics", epoch_metrics)):
            if isinstance(value, str):
                raise InvalidArgumentError(f'{name} must be a list of names such as ["val_loss"]; got {value!r}.')
        self._driver = Driver(path, {"probe": probe, **options})
        self._step_metrics = tuple(step_metrics)
        self._epoch_metrics = tuple(epoch_metrics) if epoch_metrics is not None else None
        self._sample_ids = sample_ids
        self._restored: tuple[int, int] | None = None
        self._global_step = 0
        self._loss: torch.Tensor | None = None
        self._ids: list[Any] = []
        self._seen: dict[str, Any] = {}

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, while training is under way."""
        return self._driver.recorder

    # From here on the trainer calls

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Open the recording where the trainer stands, checkpoint or not."""
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            raise InvalidArgumentError(
                f"DynomeCallback records whole models, and {strategy} shards them; use one device, or strategy='ddp'."
            )
        restored, self._restored = self._restored, None
        # Without a state of ours, the checkpoint is of a run without this callback.
        completed, step = restored or (trainer.current_epoch, trainer.global_step)
        progress = trainer.fit_loop.epoch_progress.current
        plugin = trainer.precision_plugin
        self._driver.open(
            pl_module,
            optimizer=trainer.optimizers[0] if trainer.optimizers else None,
            completed=max(completed, trainer.current_epoch),
            step=step,
            at_end=progress.ready == progress.completed,
            way_out="go on with trainer.fit(..., ckpt_path=...)",
            forward=lambda model, batch: call_model(model, plugin.convert_input(batch)),
            autocast=_AUTOCAST.get(str(trainer.precision)),
        )
        self._global_step = trainer.global_step
        self._loss, self._ids, self._seen = None, [], dict(trainer.callback_metrics)

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Begin the epoch with its first batch."""
        with self._driver.shielded("beginning an epoch"):
            self._driver.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note a step where the optimizer has stepped; otherwise keep what the batch gave until it does."""
        stepped = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        self._driver.step += stepped
        with self._driver.shielded("noting a step"):
            if self._driver.is_open:
                self._keep(outputs, batch)
                if stepped:
                    self._note_step(trainer)

    def _keep(self, outputs: Any, batch: Any) -> None:
        """Keep what one batch gives until the optimizer steps."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            # Lightning has divided it by the number of accumulated batches. Out of place: it may be the module's own.
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if self._sample_ids is not None:
            self._ids.extend(torch.as_tensor(self._sample_ids(batch)).reshape(-1).tolist())

    def _note_step(self, trainer: Any) -> None:
        metrics: dict[str, Any] = {} if self._loss is None else {"loss": self._loss}
        if self._step_metrics:
            logged = trainer.callback_metrics
            metrics |= {name: logged[name] for name in self._step_metrics if name in logged}
        ids, self._ids, self._loss = self._ids, [], None
        self._driver.after_step(metrics, sample_ids=ids or None)

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Commit the epoch with what was logged in it."""
        with self._driver.shielded("committing an epoch"):
            # A trainer that goes on from the very end of an epoch ends it once more.
            metrics = self._logged_metrics(trainer) if self._driver.is_open else {}
            self._driver.after_epoch(metrics, number=trainer.current_epoch + 1)

    def _logged_metrics(self, trainer: Any) -> dict[str, Any]:
        logged = dict(trainer.callback_metrics)
        # A metric that was not logged in this epoch (validation every second one) is the same tensor as before.
        fresh = {name: value for name, value in logged.items() if self._seen.get(name) is not value}
        self._seen = logged
        if self._epoch_metrics is not None:
            return {name: fresh[name] for name in self._epoch_metrics if name in fresh}
        return {
            name: value
            for name, value in fresh.items()
            if not (name.endswith("_step") and f"{name.removesuffix('_step')}_epoch" in fresh)
        }

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Wait until everything is on disk."""
        with self._driver.shielded("flushing"):
            self._driver.before_checkpoint()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Close the recording."""
        if stage == "fit":
            self._driver.close(None)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Close the recording; what was committed stays."""
        self._driver.close(exception)

    # Checkpoints

    @property
    def state_key(self) -> str:
        """Name of the callback in a checkpoint; the folder's, so that a moved run can be continued."""
        return str(self._generate_state_key(path=Path(self._driver.path).name))

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Commit what the checkpoint holds before it is written."""
        with self._driver.shielded("committing before a checkpoint"):
            self._driver.before_checkpoint()

    def state_dict(self) -> dict[str, Any]:
        """Return where the recording stands: epochs and optimizer steps."""
        return {"completed": self._driver.completed, "step": self._driver.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the recording stood when a checkpoint was written."""
        self._restored = int(state_dict["completed"]), int(state_dict["step"])
