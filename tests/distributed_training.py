"""One rank of a small distributed training run, started as a process of its own by the tests.

    python distributed_training.py FOLDER RANK WORLD '{"epochs": 2, ...}'

Prints one JSON line: what the test compares. Data, seeds and order depend on rank and world alone.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dynome_recorder import DynomeError, Probe, Recorder, every

SAMPLES, INPUTS, BATCH = 61, 6, 5  # a prime number of samples: no world size divides it


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(SAMPLES, INPUTS, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def batches_of(epoch: int, rank: int, world: int, count: int) -> list[torch.Tensor]:
    """Row numbers of each batch of an epoch, on one rank."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(100 + epoch))
    mine = order[rank::world]
    return [mine[start : start + BATCH] for start in range(0, count * BATCH, BATCH)]


def digest(module: nn.Module) -> str:
    state = hashlib.sha256()
    for value in module.state_dict().values():
        state.update(value.detach().numpy().tobytes())
    return state.hexdigest()


class Collectives:
    """Counts calls of torch.distributed's collectives that are ours, while ``counting``."""

    NAMES = ("broadcast_object_list", "all_gather_object", "gather_object", "barrier", "all_reduce", "broadcast")

    def __init__(self) -> None:
        self.counting, self.count = False, 0
        for name in self.NAMES:
            setattr(distributed, name, self.counted(getattr(distributed, name)))

    def counted(self, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += self.counting
            return function(*arguments, **named)

        return call


def train(folder: Path, rank: int, world: int, options: dict[str, Any]) -> dict[str, Any]:
    model = make_model()
    data, labels = make_data()
    checkpoint = folder / "checkpoint.pt"
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[float] = []
    per_epoch = options.get("steps", 3)
    collectives = Collectives()

    def run_epoch(epoch: int, recorder: Recorder | None) -> None:
        for rows in batches_of(epoch, rank, world, per_epoch):
            loss = nn.functional.cross_entropy(wrapped(data[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if recorder is not None:
                recorder.step(loss=loss, sample_ids=rows)

    if not options.get("record", True):
        for epoch in range(1, options["epochs"] + 1):
            run_epoch(epoch, None)
        return {"losses": losses, "weights": digest(model)}
    if options.get("disagree") == rank:
        sites: list[str] = ["1"]
    else:
        sites = ["1", "3"]
    recorder = Recorder(
        folder / "run",
        wrapped,
        sites=sites,
        probe=Probe(torch.utils.data.TensorDataset(data, labels), size=options.get("size", 23), seed=1, batch_size=4),
        weights=every(epochs=1),
        batches=every(steps=2) if options.get("batches", True) else None,
        batch_size=BATCH if options.get("batches", True) else None,
        on_full=options.get("on_full", "block"),
        buffer_bytes=options.get("buffer_bytes", 2**28),
        strict=options.get("strict", False),
    )
    with recorder:
        if recorder.committed_epoch:
            state = torch.load(checkpoint)
            model.load_state_dict(state["model"])
        for epoch in recorder.epochs(options["epochs"]):
            collectives.counting = True
            run_epoch(epoch, recorder)
            recorder.epoch(accuracy=epoch / 10)
            collectives.counting = False
            if options.get("die") == [rank, epoch]:
                recorder.flush()
                distributed.barrier()
                import os

                os._exit(9)
            if options.get("flush", True):
                recorder.flush()
            if rank == 0:
                torch.save({"model": model.state_dict()}, checkpoint)
    return {
        "losses": losses,
        "weights": digest(model),
        "collectives": collectives.count,
        "degraded": recorder.degraded,
        "skipped": dict(recorder.statistics.skipped) if recorder.statistics else {},
    }


def main() -> None:
    folder, rank, world, options = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder / options['meeting']}", rank=rank, world_size=world
        )
    try:
        result = train(folder, rank, world, options)
    except DynomeError as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
