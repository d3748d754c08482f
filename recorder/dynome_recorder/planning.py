"""Making the plan: from a model, patterns and a probe to what exactly will be recorded. Writes nothing."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

from dynome_recorder.capture.probe import Forward, Probe, to_device
from dynome_recorder.capture.reductions import RecordedType, SiteLayout, layout_site
from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.plan import Plan, PlannedWeight
from dynome_recorder.tracing.canary import time_forward, trace_model
from dynome_recorder.tracing.isolation import device_of
from dynome_recorder.tracing.layers import modules_by_path
from dynome_recorder.tracing.patterns import Pattern, check_patterns, names_module, pattern_text
from dynome_recorder.tracing.sites import Site, module_aliases, select_sites, site_name
from dynome_recorder.tracing.unhookable import list_unhookable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from dynome_recorder.capture.steps import ReductionChoice
    from dynome_recorder.schedule import Schedule
    from dynome_recorder.tracing.trace import Trace

# One reduction for all sites, or one per `Pattern`.
Reductions: TypeAlias = "ReductionChoice | Mapping[Any, ReductionChoice]"


def make_plan(
    path: Path,
    model: nn.Module,
    *,
    patterns: Sequence[Pattern] | None,
    probe: Probe,
    forward: Forward,
    reduction: Reductions | None,
    dtype: RecordedType,
    schedules: Mapping[str, Schedule],
    epochs: int,
    steps_per_epoch: int | None,
    batch_size: int | None = None,
    gradients: bool = False,
    parts: int = 1,
    buffer_bytes: int | None = None,
    on_full: str = "block",
    autocast: torch.dtype | None = None,
    measure: bool = False,
) -> tuple[Plan, Trace]:
    """Trace one forward pass and decide what is recorded; the arguments are those of `Recorder`.

    Parameters
    ----------
    schedules
        Per stream that is recorded ("probe", "batches", "weights"): when.
    parts
        Number of processes that share the recording.
    measure
        Whether to time the probe's forward pass: three more passes on its first batch.

    Raises
    ------
    InvalidArgumentError
        If a pattern matches nothing or names what cannot be hooked, or a site needs a reduction.
    InvalidDataError
        If the probe cannot be loaded or the forward pass fails on it.
    """
    from dynome_recorder.storage.format import RUN_FILE

    first = to_device(probe.batches()[0], device_of(model))
    rows = probe.rows_per_batch()
    trace = trace_model(model, first, forward=forward, samples=rows[0], seed=probe.seed, autocast=autocast)
    seconds = None
    if measure:
        seconds = time_forward(model, first, forward=forward, seed=probe.seed, autocast=autocast)
        seconds *= sum(rows) / rows[0] / parts
    sites = lay_out_sites(model, patterns, trace=trace, reduction=reduction, dtype=dtype)
    chosen = {(layout.site.module, layout.site.call) for layout in sites}
    plan = Plan(
        path=path,
        continues=(path / RUN_FILE).exists(),
        sites=sites,
        weights=plan_weights(model) if "weights" in schedules else (),
        samples=probe.size,
        probe=f"{probe.size} of {probe.population} samples, {'class-balanced' if probe.balanced else 'random'}",
        schedules=dict(schedules),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        unhookable=list_unhookable(model, trace, chosen=chosen),
        free_bytes=free_disk(path),
        notes=list_notes(sites, trace),
        batch_size=batch_size if "batches" in schedules else None,
        gradients=gradients,
        parts=parts,
        buffer_bytes=buffer_bytes,
        on_full=on_full,
        autocast=None if autocast is None else str(autocast).removeprefix("torch."),
        state_bytes=sum(
            tensor.numel() * tensor.element_size() for tensor in itertools.chain(model.parameters(), model.buffers())
        ),
        forward_seconds=seconds,
    )
    return plan, trace


def list_notes(sites: Sequence[SiteLayout], trace: Trace) -> tuple[tuple[str, str], ...]:
    """Say what a user of these sites may not expect: one tensor of several, one module called several times."""
    calls = {(call.module, call.call): call for call in trace.calls}
    notes: list[tuple[str, str]] = []
    for site in (layout.site for layout in sites):
        call = calls[site.module, site.call]
        if site.output and len(call.recordable) == 1:
            notes.append((site.name, f"the only one of {len(call.outputs)} outputs that can be recorded"))
        names = [site_name(one.module, one.call) for one in trace.calls if one.module == site.module]
        if len(names) > 1:
            shown = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
            notes.append((site.module, f"called {len(names)} times in one pass, each call is a site: {shown}"))
    return tuple(dict.fromkeys(notes))


def lay_out_sites(
    model: nn.Module,
    patterns: Sequence[Pattern] | None,
    *,
    trace: Trace,
    reduction: Reductions | None,
    dtype: RecordedType,
) -> tuple[SiteLayout, ...]:
    """Select sites and decide units and dtype of each.

    A mapping of ``reduction`` has site names, globs, classes or modules as keys: the site's own name counts first, then
    the first key that matches; a site that none matches has its default.
    """
    outputs = {(call.module, call.call, output.path): output for call in trace.calls for output in call.outputs}
    layouts = []
    sites = select_sites(model, patterns, trace=trace)
    for site, choice in zip(sites, choose_reductions(model, sites, reduction), strict=True):
        output = outputs[site.module, site.call, site.output]
        if output.problem is not None or output.shape is None or output.dtype is None:
            raise InvalidArgumentError(f"sites: {site.name!r} {output.problem}.")
        layouts.append(
            layout_site(site, output_shape=output.shape[1:], native_dtype=output.dtype, reduction=choice, dtype=dtype)
        )
    return tuple(layouts)


def choose_reductions(
    model: nn.Module, sites: Sequence[Site], reduction: Reductions | None
) -> list[ReductionChoice | None]:
    """Return the reduction of each site; raise `InvalidArgumentError` for a key that matches none of them."""
    if not isinstance(reduction, Mapping):
        return [reduction] * len(sites)
    modules, aliases = modules_by_path(model), module_aliases(model)
    check_patterns(list(reduction))
    chosen: list[ReductionChoice | None] = []
    unused = list(reduction)
    for site in sites:
        matching = [
            key
            for key in reduction
            if (isinstance(key, str) and fnmatchcase(site.name, key))
            or names_module(key, site.module, modules[site.module], aliases)
        ]
        chosen.append(reduction.get(site.name, reduction[matching[0]]) if matching else None)
        unused = [key for key in unused if key not in matching]
    if unused:
        raise InvalidArgumentError(
            f"reduction: {pattern_text(unused[0])} is no recorded site; the sites are"
            f" {', '.join(repr(site.name) for site in sites)}."
        )
    return chosen


def plan_weights(model: nn.Module) -> tuple[PlannedWeight, ...]:
    """List the parameters as they are recorded: tied ones once, under their first name, and none that is empty.

    Raises
    ------
    InvalidArgumentError
        For a sparse parameter.
    """
    import torch

    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        if parameter.layout is not torch.strided:
            raise InvalidArgumentError(
                f"weights: parameter {name!r} is {str(parameter.layout).removeprefix('torch.')}; only dense ones can be"
                " recorded. Make it dense, or leave weights= out."
            )
    return tuple(
        PlannedWeight(
            name=name,
            shape=tuple(parameter.shape),
            dtype=str(parameter.dtype).removeprefix("torch."),
            bytes=parameter.numel() * parameter.element_size(),
            aliases=tuple(names[id(parameter)][1:]),
        )
        for name, parameter in model.named_parameters()
        if parameter.numel()
    )


def free_disk(path: Path) -> int:
    """Return the free bytes where a folder is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
