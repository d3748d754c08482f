"""Small recordings for tests, written through RecordingWriter without torch.

The network is imagined, not trained: an MLP whose weights drift and whose activations follow from them, so that shapes,
ranges, correlations and trends look like those of a training run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from dynome_recorder.storage.run import share_of
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

INPUTS = 10
CLASSES = 4


def layer_graph(widths: Mapping[str, int]) -> list[dict[str, object]]:
    """Return the layer graph of an MLP: a Linear and a ReLU per hidden site, then a Linear head."""
    layers: list[dict[str, object]] = []
    before = INPUTS
    for name, width in [*widths.items(), ("head", CLASSES)]:
        linear = name if name == "head" else f"{name}.linear"
        shapes = {"input_shape": [before], "output_shape": [width]}
        parameters = {"weight": f"{linear}.weight", "bias": f"{linear}.bias"}
        layers.append(
            {"index": len(layers), "module": linear, "type": "Linear", "call": 0, "parameters": parameters, **shapes}
            | {"configuration": {"in_features": before, "out_features": width}, "sources": [len(layers) - 1]}
        )
        if name != "head":
            layers.append(
                {"index": len(layers), "module": name, "type": "ReLU", "call": 0, "parameters": {}}
                | {"input_shape": [width], "output_shape": [width], "configuration": {}, "sources": [len(layers) - 1]}
            )
        before = width
    return layers


def describe(
    sites: Mapping[str, int],
    *,
    samples: int,
    dtype: str = "float32",
    weights: bool = True,
    hyperparameters: Mapping[str, object] | None = None,
    seed: int = 0,
) -> RunDescription:
    """Return the description of the imagined network."""
    parameters: list[dict[str, object]] = []
    for layer in layer_graph(sites):
        if layer["type"] == "Linear":
            fan_out, fan_in = layer["output_shape"][0], layer["input_shape"][0]  # type: ignore[index]
            names = layer["parameters"]
            parameters.append(
                {"name": names["weight"], "shape": [fan_out, fan_in], "dtype": "float32", "alias_of": None}
            )  # type: ignore[index]
            parameters.append({"name": names["bias"], "shape": [fan_out], "dtype": "float32", "alias_of": None})  # type: ignore[index]
    axes = {1: ("output",), 2: ("output", "input")}
    return RunDescription(
        sites={
            site: ArraySpec((samples, units), dtype, ("sample", "unit"), {"module": site, "call": 0, "type": "ReLU"})
            for site, units in sites.items()
        },
        weights={
            str(p["name"]): ArraySpec(tuple(p["shape"]), "float32", axes[len(p["shape"])])  # type: ignore[arg-type]
            for p in parameters
        }
        if weights
        else {},
        probe={"hash": hashlib.sha256(f"{samples}-{seed}".encode()).hexdigest(), "size": samples, "seed": seed},
        model={"class": "tests.MLP", "parameters": parameters, "layers": layer_graph(sites)},
        optimizer={"class": "SGD", "groups": [{"lr": 0.05, "momentum": 0.9}]},
        hyperparameters={"lr": 0.05, "seed": seed, "hidden": list(sites.values())} | dict(hyperparameters or {}),
        schedules={"probe": "every(epochs=1)"} | ({"weights": "every(epochs=1)"} if weights else {}),
        versions={"dynome": "test"},
    )


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as the writer wants them; bfloat16 as truncated bit patterns."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def moments(
    sites: Mapping[str, int],
    *,
    samples: int,
    epochs: int,
    seed: int = 0,
    dtype: str = "float32",
    weights: bool = True,
    metrics: bool = True,
    steps_per_epoch: int = 3,
    dead_units: int = 0,
) -> list[Moment]:
    """Return the moments of epochs 0 ... `epochs` of the imagined training."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, INPUTS))
    widths = [INPUTS, *sites.values(), CLASSES]
    names = [*(f"{site}.linear" for site in sites), "head"]
    start = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(widths)]
    goal = [rng.normal(size=w.shape) / np.sqrt(w.shape[1]) for w in start]
    result = []
    for epoch in range(epochs + 1):
        progress = 1.0 - np.exp(-epoch / 3.0)
        state: dict[str, np.ndarray] = {}
        activations: dict[str, np.ndarray] = {}
        hidden = inputs
        for name, a, b in zip(names, start, goal, strict=True):
            weight = (1 - progress) * a + progress * b + 0.01 * rng.normal(size=a.shape)
            bias = 0.1 * progress * np.ones(len(weight))
            state |= {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}
            hidden = np.maximum(hidden @ weight.T + bias, 0)
            if name != "head":
                if dead_units:
                    hidden[:, :dead_units] = 0
                activations[name.removesuffix(".linear")] = to_dtype(hidden, dtype)
        steps = list(range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1)) if epoch else []
        loss = 2.0 * np.exp(-epoch / 3.0) + 0.1 + 0.01 * rng.random(len(steps))
        quality = {
            "val_loss": float(2.0 * np.exp(-epoch / 2.5) + 0.01 * max(0, epoch - 4) + 0.02 * rng.random()),
            "val_accuracy": float(0.9 - 0.8 * np.exp(-epoch / 2.0)),
            "test_accuracy": float(0.88 - 0.8 * np.exp(-epoch / 2.0) + 0.01 * rng.random()),
        }
        digest = hashlib.sha256(b"".join(v.tobytes() for v in state.values())).hexdigest()
        result.append(
            Moment(
                epoch=epoch,
                step=epoch * steps_per_epoch,
                epoch_complete=True,
                parameters=digest,
                probe=activations,
                weights=state if weights else None,
                step_metrics={"loss": (steps, loss.tolist()), "lr": (steps, [0.05] * len(steps))}
                if metrics and steps
                else {},
                epoch_metrics=quality if metrics else {},
            )
        )
    return result


def write_recording(
    path: Path,
    *,
    sites: Mapping[str, int] | None = None,
    samples: int = 40,
    epochs: int = 6,
    seed: int = 0,
    dtype: str = "float32",
    weights: bool = True,
    metrics: bool = True,
    steps_per_epoch: int = 3,
    dead_units: int = 0,
    hyperparameters: Mapping[str, object] | None = None,
    change: Callable[[Moment], Moment] | None = None,
) -> Path:
    """Write a recording of epochs 0 ... `epochs` and return its folder.

    Parameters
    ----------
    path
        Folder to make.
    sites
        Units per hidden site; two sites of 12 and 8 by default.
    samples, epochs, seed, dtype, weights, metrics, steps_per_epoch
        What they say.
    dead_units
        Units of each site that never fire.
    hyperparameters
        Added to those of the run.
    change
        Applied to every moment before it is committed, to drop a metric, break an activation, ...
    """
    sites = {"hidden1": 12, "hidden2": 8} if sites is None else sites
    description = describe(
        sites, samples=samples, dtype=dtype, weights=weights, hyperparameters=hyperparameters, seed=seed
    )
    with RecordingWriter.open(path, description) as writer:
        for moment in moments(
            sites,
            samples=samples,
            epochs=epochs,
            seed=seed,
            dtype=dtype,
            weights=weights,
            metrics=metrics,
            steps_per_epoch=steps_per_epoch,
            dead_units=dead_units,
        ):
            writer.commit(moment if change is None else change(moment))
    return path


PROBE_SAMPLES = 7
BATCH_SIZE = 3
"""Samples of one rank's batch, at most."""
BATCH_SITES = {"a": 1, "tokens": 2}
"""Rows of each sample of a batch at each site."""
UNITS = 4


def describe_ranks(parts: int, *, gradients: bool = True) -> RunDescription:
    """Return the description of a recording of all three streams in so many parts."""
    batches = {
        site: ArraySpec(
            (BATCH_SIZE * parts * rows, UNITS),
            "float32",
            ("sample" if rows == 1 else "row", "unit"),
            {"module": site},
            rows=BATCH_SIZE * rows,
        )
        for site, rows in BATCH_SITES.items()
    }
    share = -(-PROBE_SAMPLES // parts)
    return RunDescription(
        sites={
            site: ArraySpec((PROBE_SAMPLES, UNITS), "float16", ("sample", "unit"), {"module": site}, rows=share)
            for site in BATCH_SITES
        },
        weights={"w": ArraySpec((2, 3), "float32", ("output", "input"))},
        batches=batches,
        gradients=batches if gradients else {},
        batch_size=BATCH_SIZE,
        parts=parts,
        probe={"hash": "ranks", "size": PROBE_SAMPLES},
        model={"class": "tests.Ranks", "parameters": [], "layers": []},
        schedules={"probe": "every(steps=2)", "batches": "every(steps=1)", "weights": "every(steps=3)"},
    )


def due_streams(step: int) -> tuple[str, ...]:
    """Return the streams that have a snapshot at a step."""
    every = {"probe": 2, "weights": 3, "batches": 1}
    return tuple(stream for stream, steps in every.items() if step % steps == 0)


def batch_rows(step: int, rank: int) -> int:
    """Return how many samples a rank's batch has: from none to all."""
    return (step + 2 * rank + 1) % (BATCH_SIZE + 1)


def ranked_values(kind: str, site: str, step: int, shape: tuple[int, ...], rank: int = 0) -> np.ndarray:
    """Return values that follow from their names alone."""
    seed = hashlib.sha256(f"{kind}-{site}-{step}-{rank}".encode()).digest()[:8]
    return np.random.default_rng(int.from_bytes(seed)).normal(size=shape).astype(np.float32)


def whole_snapshot(kind: str, site: str, step: int, *, parts: int, world: int) -> np.ndarray:
    """Return what all ranks together record: of batches with fill values where there are no samples."""
    if kind == "probe":
        return ranked_values(kind, site, step, (PROBE_SAMPLES, UNITS)).astype(np.float16)
    if kind == "weights":
        return ranked_values(kind, site, step, (2, 3))
    rows = 1 if kind == "sample_id" else BATCH_SITES[site]
    shape = (BATCH_SIZE * parts * rows, UNITS)
    whole = np.full(shape[:1], -1, np.int64) if kind == "sample_id" else np.full(shape, np.nan, np.float32)
    for rank in range(min(world, parts)):
        count = batch_rows(step, rank)
        place = slice(rank * BATCH_SIZE * rows, (rank * BATCH_SIZE + count) * rows)
        if kind == "sample_id":
            whole[place] = 1000 * step + 100 * rank + np.arange(count)
        else:
            whole[place] = ranked_values(kind, site, step, (count * rows, UNITS), rank)
    return whole


def ranked_moment(step: int, rank: int, *, parts: int, world: int, skipped: tuple[str, ...] = ()) -> Moment:
    """Return what a rank commits at a step; an epoch is four steps."""
    due = due_streams(step)
    skipped = tuple(stream for stream in skipped if stream in due)
    taken = {stream for stream in due if stream not in skipped}
    share = -(-PROBE_SAMPLES // parts)
    mine = share_of(rank, world, parts)
    samples = slice(mine.start * share, mine.stop * share)
    count = batch_rows(step, rank)
    has_batch = count and rank < parts

    def batch(kind: str) -> dict[str, np.ndarray]:
        if not has_batch:
            return {}
        return {s: ranked_values(kind, s, step, (count * rows, UNITS), rank) for s, rows in BATCH_SITES.items()}

    batches = "batches" in taken
    return Moment(
        epoch=step // 4,
        step=step,
        epoch_complete=step % 4 == 0,
        probe={site: whole_snapshot("probe", site, step, parts=parts, world=world)[samples] for site in BATCH_SITES}
        if "probe" in taken and mine
        else {}
        if "probe" in taken
        else None,
        weights={"w": whole_snapshot("weights", "w", step, parts=parts, world=world)}
        if "weights" in taken and not rank
        else None,
        batches=batch("batches") if batches else None,
        gradients=batch("gradients") if batches else None,
        sample_ids=1000 * step + 100 * rank + np.arange(count) if batches else None,
        rows=count if batches else 0,
        step_metrics={} if rank or not step else {"loss": ([step], [1 / step])},
        epoch_metrics={"accuracy": step / 100} if step % 4 == 0 and not rank else {},
        batch_health={"a": {"nan": rank + 1}} if batches and has_batch and step % 5 == 0 else {},
        skipped=skipped,
    )


def write_ranks(
    path: Path,
    *,
    steps: int,
    world: int = 2,
    parts: int = 2,
    first: int = 0,
    skipped: Mapping[tuple[int, int], tuple[str, ...]] | None = None,
    publish_interval: float = 1e9,
) -> Path:
    """Record steps first ... `steps` - 1 on so many ranks, all in this process; returns the folder.

    Parameters
    ----------
    path
        Folder of the recording, new or to be continued.
    steps, first, world, parts
        What they say.
    skipped
        What a rank leaves out, by (step, rank).
    publish_interval
        Of the writers; by default only opening and closing publish.
    """
    description = describe_ranks(parts)
    with contextlib.ExitStack() as stack:
        lead = stack.enter_context(
            RecordingWriter.open(path, description, world=world, publish_interval=publish_interval)
        )
        writers = [lead]
        for rank in range(1, world):
            other = RecordingWriter.open(path, description, rank=rank, world=world, first_sequence=lead.next_sequence)
            writers.append(stack.enter_context(other))
        for step in range(first, steps):
            for rank, writer in enumerate(writers):
                left_out = (skipped or {}).get((step, rank), ())
                writer.commit(ranked_moment(step, rank, parts=parts, world=world, skipped=left_out))
    return path
