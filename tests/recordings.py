"""Small recordings for tests, written through RecordingWriter without torch.

The network is imagined, not trained: an MLP whose weights drift and whose activations follow from them, so that shapes,
ranges, correlations and trends look like those of a training run.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

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
