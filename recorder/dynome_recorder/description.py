"""What ``run.json`` says of a run, as plain data."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.tracing.layers import describe_model

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dynome_recorder.capture.probe import Probe
    from dynome_recorder.capture.reductions import SiteLayout
    from dynome_recorder.plan import Plan, PlannedWeight
    from dynome_recorder.storage.layout import ArraySpec
    from dynome_recorder.storage.run import RunDescription
    from dynome_recorder.tracing.trace import Trace


def describe_run(
    plan: Plan,
    trace: Trace,
    *,
    model: nn.Module,
    probe: Probe,
    optimizer: Optimizer | None,
    hyperparameters: Mapping[str, Any],
) -> RunDescription:
    """Collect what the writer needs to start or to continue a recording."""
    from dynome_recorder.storage.run import RunDescription

    # Every process writes its own part of the probe, and its own batch.
    share = math.ceil(plan.samples / plan.parts) if plan.parts > 1 else None
    batch = plan.batch_size if "batches" in plan.schedules else None
    batches = {layout.site.name: _site_spec(layout, batch * plan.parts, share=batch) for layout in plan.sites if batch}
    return RunDescription(
        sites={layout.site.name: _site_spec(layout, plan.samples, share=share) for layout in plan.sites},
        batches=batches,
        gradients=batches if plan.gradients else {},
        batch_size=batch,
        parts=plan.parts,
        weights={weight.name: _weight_spec(weight) for weight in plan.weights},
        probe=probe.describe(),
        model=describe_model(model, trace.layers),
        optimizer=describe_optimizer(optimizer) if optimizer is not None else None,
        hyperparameters=hyperparameters,
        schedules={stream: str(schedule) for stream, schedule in plan.schedules.items()},
        versions=_versions(),
    )


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's class, and per parameter group its plain settings and number of parameters."""
    groups = []
    for group in optimizer.param_groups:
        settings: dict[str, Any] = {"parameters": len(group["params"])}
        for name, value in group.items():
            with contextlib.suppress(InvalidArgumentError):
                if name != "params":
                    settings[name] = check_plain(name, value)
        groups.append(settings)
    return {"class": type(optimizer).__name__, "groups": groups}


def check_plain(name: str, value: Any) -> Any:
    """Return a hyper-parameter as JSON can hold it; one-element tensors and numpy's scalars become numbers.

    Raises
    ------
    InvalidArgumentError
        If the value is something else than numbers, texts, None, and lists and mappings of them; names where.
    """
    if isinstance(value, Mapping):
        return {str(key): check_plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [check_plain(name, item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidArgumentError(
        f"hyperparameters: {name!r} must be a number, a text, or a list or mapping of them; got {type(value).__name__}."
    )


def _site_spec(layout: SiteLayout, samples: int, *, share: int | None) -> ArraySpec:
    """Describe what is recorded at a site; ``share``: samples in one file, None for all."""
    from dynome_recorder.storage.layout import ArraySpec

    site = layout.site
    attributes: dict[str, Any] = {
        "module": site.module,
        "call": site.call,
        "type": site.type,
        "aliases": list(site.aliases),
        "output": list(site.output),
        "output_shape": list(layout.output_shape),
        "reduction": layout.reduction,
        "native_dtype": layout.native_dtype,
        "rows_per_sample": layout.rows_per_sample,
    }
    for axis in ("units", "positions"):
        chosen = layout.chosen(axis)
        if chosen is not None:
            attributes[f"chosen_{axis}"] = chosen.tolist()
    return ArraySpec(
        shape=(samples * layout.rows_per_sample, layout.units),
        dtype=layout.dtype,
        # "sample" is one axis of all of a stream, next to the names of its samples; several rows of each are another.
        dimensions=("sample" if layout.rows_per_sample == 1 else "row", "unit"),
        attributes=attributes,
        rows=None if share is None else share * layout.rows_per_sample,
    )


def _weight_spec(weight: PlannedWeight) -> ArraySpec:
    from dynome_recorder.storage.layout import ArraySpec

    return ArraySpec(
        shape=weight.shape,
        dtype=weight.dtype,
        dimensions=tuple(f"axis_{axis}" for axis in range(len(weight.shape))),
        attributes={"aliases": list(weight.aliases)},
    )


def _versions() -> dict[str, str]:
    # Two thirds of this package's import time, hence here.
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("dynome", "torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
