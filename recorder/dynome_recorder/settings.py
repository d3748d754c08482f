"""What a user asked of a recorder, checked once and passed on as frozen data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynome_recorder.capture.probe import Forward, Probe, call_model
from dynome_recorder.capture.reductions import RecordedType, check_choice, check_reductions
from dynome_recorder.description import check_plain
from dynome_recorder.errors import InvalidArgumentError, MissingExtraError
from dynome_recorder.schedule import Schedule, check_count, check_schedule, every
from dynome_recorder.tracing.layers import plain_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn
    from torch.optim import Optimizer

    from dynome_recorder.tracing.sites import Pattern

OnFull = Literal["block", "thin", "skip"]
OnExisting = Literal["resume", "error"]


@dataclass(frozen=True)
class Settings:
    """The arguments of a `Recorder`, checked; its docstring says what each means.

    Attributes
    ----------
    called, model
        The model as the training loop calls it, and the plain module inside its wrappers.
    schedules
        Per stream that is recorded: when. "probe" always, "batches" and "weights" where asked for.
    """

    path: Path
    called: nn.Module
    model: nn.Module
    patterns: Sequence[Pattern] | None
    probe: Probe
    schedules: Mapping[str, Schedule]
    batch_size: int | None
    gradients: bool
    reduction: Any
    dtype: RecordedType
    autocast: torch.dtype | None
    optimizer: Optimizer | None
    hyperparameters: Mapping[str, Any]
    forward: Forward
    on_full: OnFull
    buffer_bytes: int
    strict: bool
    on_existing: OnExisting


def check_settings(
    path: str | Path,
    model: Any,
    *,
    sites: Sequence[Pattern] | None,
    probe: Any,
    schedule: Schedule | None,
    weights: Schedule | None,
    batches: Schedule | None,
    batch_size: int | None,
    gradients: bool,
    reduction: Any,
    dtype: RecordedType,
    autocast: torch.dtype | None,
    optimizer: Optimizer | None,
    hyperparameters: Mapping[str, Any] | None,
    forward: Forward | None,
    on_full: OnFull,
    buffer_bytes: int,
    strict: bool,
    on_existing: OnExisting,
) -> Settings:
    """Check the arguments of a `Recorder`.

    Raises
    ------
    InvalidArgumentError
        For an argument of the wrong kind, or arguments that do not go together.
    MissingExtraError
        If torch is not installed.
    """
    from dynome_recorder.capture.batches import check_batches
    from dynome_recorder.capture.parameters import check_plain_parameters

    _check_model(model)
    check_plain_parameters(model)
    if not isinstance(probe, Probe):
        raise InvalidArgumentError(
            f"probe must be a Probe, e.g. Probe(train_set, size=1000); got {type(probe).__name__}."
        )
    check_choice("dtype", dtype, RecordedType)
    check_reductions(reduction)
    check_choice("on_full", on_full, OnFull)
    check_choice("on_existing", on_existing, OnExisting)
    schedules = {"probe": check_schedule("schedule", schedule if schedule is not None else every(epochs=1))}
    if batches is not None:
        schedules["batches"] = check_schedule("batches", batches)
        if batch_size is None:
            raise InvalidArgumentError(
                "batch_size is needed with batches=: the number of samples that one process puts through the model"
                " between two optimizer steps, e.g. batch_size=loader.batch_size (times the accumulated batches)."
            )
        batch_size = check_count("batch_size", batch_size, least=1)
        check_batches(model, gradients=gradients)
        if not schedules["batches"].counts_steps:
            raise InvalidArgumentError(
                f"batches must be a schedule of steps, e.g. every(steps=10); got {schedules['batches']}."
            )
    elif batch_size is not None or gradients:
        name = "gradients" if gradients else "batch_size"
        raise InvalidArgumentError(f"{name} belongs to the batches stream; give batches=every(steps=10) too.")
    if weights is not None:
        schedules["weights"] = check_schedule("weights", weights)
    return Settings(
        path=_check_path(path).absolute(),  # a loop may change the working folder
        called=model,
        model=plain_module(model),
        patterns=sites,
        probe=probe,
        schedules=schedules,
        batch_size=batch_size,
        gradients=gradients,
        reduction=reduction,
        dtype=dtype,
        autocast=_check_autocast(autocast),
        optimizer=_check_optimizer(optimizer),
        hyperparameters=_check_hyperparameters(hyperparameters),
        forward=_check_forward(forward),
        on_full=on_full,
        buffer_bytes=check_count("buffer_bytes", buffer_bytes, least=1),
        strict=strict,
        on_existing=on_existing,
    )


def _check_model(model: Any) -> None:
    try:
        from torch import nn
    except ImportError as error:
        raise MissingExtraError('Recorder needs torch; install it with: pip install "dynome[torch]"') from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}.")


def _check_path(path: Any) -> Path:
    if isinstance(path, (str, os.PathLike)) and "\0" not in str(path):
        return Path(path)
    raise InvalidArgumentError(f"path must be the folder of the recording, as a text or a pathlib.Path; got {path!r}.")


def _check_optimizer(optimizer: Any) -> Optimizer | None:
    if optimizer is None or hasattr(optimizer, "param_groups"):
        chosen: Optimizer | None = optimizer
        return chosen
    raise InvalidArgumentError(
        f"optimizer must be one torch.optim.Optimizer, which run.json then describes; got {type(optimizer).__name__}."
        " Leave it out, or describe several in hyperparameters=."
    )


def _check_hyperparameters(values: Any) -> dict[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise InvalidArgumentError(
            f"hyperparameters must be a mapping, such as {{'lr': 0.1}}; got {type(values).__name__}. vars(args) makes"
            " one of parsed arguments."
        )
    return {str(name): check_plain(str(name), value) for name, value in (values or {}).items()}


def _check_forward(forward: Any) -> Forward:
    if forward is None:
        return call_model
    if not callable(forward):
        raise InvalidArgumentError(
            "forward must be a function that runs the model on one batch, such as lambda model, batch:"
            f" model(batch[0]); got {type(forward).__name__}."
        )
    chosen: Forward = forward
    return chosen


def plain_module(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers that only compile or distribute it: sites are named by its own paths."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        inner = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else plain_model(model)
        if inner is model:
            return model
        model = inner


def _check_autocast(dtype: Any) -> torch.dtype | None:
    import torch

    if dtype is None or dtype in (torch.float16, torch.bfloat16):
        chosen: torch.dtype | None = dtype
        return chosen
    raise InvalidArgumentError(
        f"autocast must be torch.bfloat16, torch.float16 or None, as the training loop uses it; got {dtype!r}."
    )
