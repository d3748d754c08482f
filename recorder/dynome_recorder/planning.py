"""Making the plan: from a model, patterns and a probe to what exactly will be recorded. Writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynome_recorder.capture.probe import Forward, Probe, to_device
from dynome_recorder.capture.reductions import RecordedType, Reduction, SiteLayout, layout_site
from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.plan import Plan, PlannedWeight
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.isolation import device_of
from dynome_recorder.tracing.sites import Pattern, select_sites

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from dynome_recorder.schedule import Schedule
    from dynome_recorder.tracing.trace import Trace


def make_plan(
    path: Path,
    model: nn.Module,
    *,
    patterns: Sequence[Pattern] | None,
    probe: Probe,
    forward: Forward,
    reduction: Reduction | Mapping[str, Reduction] | None,
    dtype: RecordedType,
    schedules: Mapping[str, Schedule],
    epochs: int,
    steps_per_epoch: int | None,
) -> tuple[Plan, Trace]:
    """Trace one forward pass and decide what is recorded; the arguments are those of `Recorder`.

    Raises
    ------
    InvalidArgumentError
        If a pattern matches nothing or names what cannot be hooked, or a site needs a reduction.
    InvalidDataError
        If the probe cannot be loaded or the forward pass fails on it.
    """
    from dynome_recorder.storage.format import RUN_FILE

    trace = trace_model(
        model,
        to_device(probe.batches()[0], device_of(model)),
        forward=forward,
        samples=probe.rows_per_batch()[0],
        seed=probe.seed,
    )
    plan = Plan(
        path=path,
        continues=(path / RUN_FILE).exists(),
        sites=lay_out_sites(model, patterns, trace=trace, reduction=reduction, dtype=dtype),
        weights=plan_weights(model) if "weights" in schedules else (),
        samples=probe.size,
        probe=f"{probe.size} of {probe.population} samples, {'class-balanced' if probe.balanced else 'random'}",
        schedules=dict(schedules),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        unhookable=list_unhookable(model, trace),
        free_bytes=free_disk(path),
    )
    return plan, trace


def lay_out_sites(
    model: nn.Module,
    patterns: Sequence[Pattern] | None,
    *,
    trace: Trace,
    reduction: Reduction | Mapping[str, Reduction] | None,
    dtype: RecordedType,
) -> tuple[SiteLayout, ...]:
    """Select sites and decide units and dtype of each; a ``reduction`` by site name leaves the others their default."""
    calls = {(call.module, call.call): call for call in trace.calls}
    sites = select_sites(model, patterns, trace=trace)
    names = [site.name for site in sites]
    for name in reduction if isinstance(reduction, Mapping) else ():
        if name not in names:
            raise InvalidArgumentError(
                f"reduction: {name!r} is no recorded site; the sites are {', '.join(map(repr, names))}."
            )
    layouts = []
    for site in sites:
        call = calls[site.module, site.call]
        if call.problem is not None or call.output_shape is None or call.output_dtype is None:
            raise InvalidArgumentError(f"sites: {site.name!r} {call.problem}.")
        layouts.append(
            layout_site(
                site,
                output_shape=call.output_shape[1:],
                native_dtype=call.output_dtype,
                reduction=reduction.get(site.name) if isinstance(reduction, Mapping) else reduction,
                dtype=dtype,
            )
        )
    return tuple(layouts)


def plan_weights(model: nn.Module) -> tuple[PlannedWeight, ...]:
    """List the parameters as they are recorded: tied ones once, under their first name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(
        PlannedWeight(
            name=name,
            shape=tuple(parameter.shape),
            dtype=str(parameter.dtype).removeprefix("torch."),
            bytes=parameter.numel() * parameter.element_size(),
            aliases=tuple(names[id(parameter)][1:]),
        )
        for name, parameter in model.named_parameters()
    )


def list_unhookable(model: nn.Module, trace: Trace) -> tuple[tuple[str, str], ...]:
    """Say what a forward pass computes that no hook can record, and why."""
    modules = dict(model.named_modules())
    fired = {call.module: call for call in trace.calls}
    found: list[tuple[str, str]] = []
    for path in trace.never_called:
        parents = [path[:position] for position, character in enumerate(path) if character == "."]
        around = next((fired[parent] for parent in reversed(parents) if parent in fired), None)
        if any(other.startswith(path + ".") for other in fired) or next(modules[path].children(), None) is not None:
            continue  # a container such as ModuleList: its members speak for themselves
        if around is not None and around.leaf:
            found.append((path, f"{around.type} uses its weights through a function and never calls it"))
        elif next(modules[path].parameters(), None) is not None:
            found.append((path, "the forward pass never calls it"))
    found += [(call.module, call.problem) for call in trace.calls if call.leaf and call.problem is not None]
    for use in trace.functions:
        where = f"in the forward of {use.module!r}" if use.module else "in the model's own forward"
        times = "once" if use.count == 1 else f"{use.count} times"
        what = "function" if use.is_activation else "parameter"
        reason = (
            "a function, which no hook sees; use a module" if use.is_activation else "used directly, not by a module"
        )
        found.append((f"{use.function} {where}", f"{reason} ({what}, {times})"))
    return tuple(dict.fromkeys(found))


def free_disk(path: Path) -> int:
    """Return the free bytes where a folder is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
