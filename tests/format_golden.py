"""Write the golden recordings: ``python tests/format_golden.py tests/format/golden-1.1``.

Run once per released format version; what is committed is never written again, because future versions must read what
*that* version wrote. The folder must not exist. ``golden-1.1-expected.npz`` beside it holds what it must read as.
golden-1.0 is one process's, of probe and weights; golden-1.1 has two ranks, batches, gradients, snapshots left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription

EPOCHS = 66
SITES = {
    "features.0": ArraySpec((6, 5), "float32", ("sample", "unit"), {"module": "features.0", "call": 0, "type": "ReLU"}),
    "block/ä": ArraySpec((6, 3), "bfloat16", ("sample", "unit"), {"module": "block/ä", "call": 1, "type": "GELU"}),
    "wide": ArraySpec((6, 100_000), "float32", ("sample", "unit"), {"module": "wide", "call": 0, "type": "ReLU"}),
}
WEIGHTS = {
    "features.0.weight": ArraySpec((5, 4), "float32", ("output", "input")),
    "scale": ArraySpec((), "float64", ()),
}
DESCRIPTION = RunDescription(
    sites=SITES,
    weights=WEIGHTS,
    probe={"hash": "golden", "size": 6, "seed": 0},
    model={
        "class": "golden.Model",
        "parameters": [
            {"name": "features.0.weight", "shape": [5, 4], "dtype": "float32", "alias_of": None},
            {"name": "scale", "shape": [], "dtype": "float64", "alias_of": None},
        ],
        "layers": [
            {
                "index": 0,
                "module": "features.0",
                "type": "Linear",
                "call": 0,
                "parameters": {"weight": "features.0.weight"},
                "input_shape": [4],
                "output_shape": [5],
                "configuration": {"in_features": 4, "out_features": 5},
                "sources": [-1],
            }
        ],
    },
    optimizer={"class": "SGD", "lr": 0.1},
    hyperparameters={"lr": 0.1, "note": "ünï", "limit": float("inf")},
    schedules={"probe": "at(0, 1, 3, 65)", "weights": "every(epochs=2)"},
    versions={"format": "1.0"},
)


def write(folder: Path) -> None:
    """Write the recording and what it must read as."""
    rng = np.random.default_rng(20261121)
    times = iter(range(1_795_000_000, 1_795_100_000))
    expected: dict[str, list[np.ndarray]] = {name: [] for name in (*SITES, *WEIGHTS)}
    losses = []
    with RecordingWriter.open(folder, DESCRIPTION, run_id="601d" * 8, clock=lambda: float(next(times))) as recording:
        for epoch in range(EPOCHS):
            probe = {
                "features.0": rng.normal(size=(6, 5)).astype(np.float32),
                "block/ä": rng.integers(0, 2**15, size=(6, 3)).astype(np.uint16),
                "wide": np.repeat(rng.normal(size=(6, 4)).astype(np.float32), 25_000, axis=1),
            }
            weights = {
                "features.0.weight": rng.normal(size=(5, 4)).astype(np.float32),
                "scale": np.array(rng.normal()),
            }
            if epoch == 1:
                probe["features.0"][:, 2] = 0  # a dead unit, and a site of fill values
                probe["wide"][:] = 0
            moment = Moment(
                epoch=epoch,
                step=2 * epoch,
                parameters=f"{epoch:064x}",
                probe=probe if epoch in (0, 1, 3, 65) else None,
                weights=weights if epoch % 2 == 0 and epoch < 6 else None,
                step_metrics={"loss": ([2 * epoch - 1, 2 * epoch], rng.random(2).tolist())} if epoch else {},
                epoch_metrics={"val/loss": float("nan") if epoch == 2 else float(rng.random())},
                health={"features.0": {"nan": 1}} if epoch == 3 else {},
            )
            recording.commit(moment)
            losses.append(moment.epoch_metrics["val/loss"])
            for given in (moment.probe or {}, moment.weights or {}):
                for name, values in given.items():
                    expected[name].append(values)
            if epoch == 64:
                recording.rewind(62)
                recording.commit(Moment(epoch=63, step=126, parameters="again", epoch_metrics={"val/loss": 0.25}))
                recording.commit(Moment(epoch=64, step=128, parameters="again", epoch_metrics={"val/loss": 0.5}))
                losses[63:] = [0.25, 0.5]
    # The third probe snapshot loses a file; the second copy of its data is in no file, so it stays lost.
    (folder / "store.zarr/probe/sites/wide/activation/c.2.0.0").unlink()
    assert verify(folder, repair=True).clean
    (folder / "recorder.lock").unlink()
    arrays = {f"array {name}": np.stack(values) for name, values in expected.items()}
    with Path(f"{folder}-expected.npz").open("wb") as file:
        np.savez_compressed(file, losses=np.array(losses), **arrays)


SAMPLES, BATCH = 5, 3  # five samples in two parts: the second is filled up
RANKED = RunDescription(
    sites={"hidden": ArraySpec((SAMPLES, 4), "float16", ("sample", "unit"), {"module": "hidden"}, rows=3)},
    weights=WEIGHTS,
    batches={"hidden": ArraySpec((2 * BATCH, 4), "float32", ("sample", "unit"), {"module": "hidden"}, rows=BATCH)},
    gradients={"hidden": ArraySpec((2 * BATCH, 4), "float32", ("sample", "unit"), {"module": "hidden"}, rows=BATCH)},
    batch_size=BATCH,
    parts=2,
    probe={"hash": "golden", "size": SAMPLES, "seed": 0},
    model=DESCRIPTION.model,
    schedules={"probe": "every(epochs=1)", "batches": "every(steps=1)"},
    versions={"format": "1.1"},
)
RANKED_STEPS = 66
BATCH_STEPS = (*range(1, 9), 64, 65, 66)
SKIPPED = (4, 65)  # steps whose batch one rank left out


def write_ranked(folder: Path) -> None:
    """Write the recording of two ranks and what it must read as; rank 1's batches shrink, one of them to nothing."""
    rng = np.random.default_rng(20261122)
    clock = iter(range(1_795_000_000, 1_795_100_000))
    expected: dict[str, list[np.ndarray]] = {"probe": [], "batches": [], "gradients": [], "sample_id": []}
    with RecordingWriter.open(
        folder, RANKED, rank=0, world=2, run_id="601d" * 8, clock=lambda: float(next(clock))
    ) as lead, RecordingWriter.open(
        folder, RANKED, rank=1, world=2, first_sequence=0, clock=lambda: float(next(clock))
    ) as other:  # fmt: skip
        for step in range(RANKED_STEPS + 1):
            probe = rng.normal(size=(SAMPLES, 4)).astype(np.float16)
            weights = {"features.0.weight": rng.normal(size=(5, 4)).astype(np.float32), "scale": np.array(step / 7)}
            counts = (BATCH, (3, 1, 0)[step % 3])
            values = rng.normal(size=(2, 2 * BATCH, 4)).astype(np.float32)
            ids = np.full(2 * BATCH, -1)
            is_epoch = step % 10 == 0
            for rank, writer in enumerate((lead, other)):
                rows = slice(rank * BATCH, rank * BATCH + counts[rank])
                values[:, rows.stop : (rank + 1) * BATCH] = np.nan
                ids[rows] = 10 * step + np.arange(rows.stop - rows.start)
                has_batch = step in BATCH_STEPS and not (rank == step % 2 and step in SKIPPED)
                writer.commit(
                    Moment(
                        epoch=step // 10,
                        step=step,
                        epoch_complete=is_epoch,
                        parameters=f"{step:032x}" if is_epoch and not rank else "",
                        probe={"hidden": probe[3 * rank : 3 * rank + 3]} if is_epoch else None,
                        weights=weights if is_epoch and not rank else None,
                        batches=({"hidden": values[0, rows]} if counts[rank] else {}) if has_batch else None,
                        gradients=({"hidden": values[1, rows]} if counts[rank] else {}) if has_batch else None,
                        sample_ids=ids[rows] if has_batch else None,
                        rows=counts[rank] if has_batch else 0,
                        step_metrics={"loss": ([step], [1 / (1 + step)])} if step and not rank else {},
                        skipped=("batches",) if step in BATCH_STEPS and not has_batch else (),
                    )
                )
            if is_epoch:
                expected["probe"].append(probe)
            if step in BATCH_STEPS:
                expected["batches"].append(values[0])
                expected["gradients"].append(values[1])
                expected["sample_id"].append(ids)
    assert verify(folder, deep=True).clean
    for lock in folder.glob("*.lock"):
        lock.unlink()
    with Path(f"{folder}-expected.npz").open("wb") as file:
        np.savez_compressed(file, **{name: np.stack(values) for name, values in expected.items()})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if target.exists():
        sys.exit(f"{target} exists; a golden recording is never written again.")
    (write_ranked if target.name == "golden-1.1" else write)(target)
