"""What recording costs the training loop: between probes, per epoch, and per recorded batch.

Arms alternate in short blocks of training steps, in random order, each with a model and an optimizer of its own; what
counts is the ratio, or the difference, of two blocks of one round. A third arm that records nothing either shows what
the ratio of equals looks like on this machine.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.modules import module as torch_module

from dynome_recorder import Probe, Recorder, every

from .intervals import median_interval
from .recording_models import SAMPLES, Subject, evaluating, pictures, subject
from .timing import Row, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOTE = """\
Ratios are medians over rounds with a 95 % interval (bootstrap over rounds). Between probes: blocks of training steps,
`recorder.step(loss=loss)` after each, nothing due; that no hook is attached then is checked in every round. The twin
records nothing, like the loop it is compared with: the distance of its ratio from 1 is the noise; where models lie in
memory matters as much, so the arms' models are made anew in another order twice. Cost of an epoch: training steps, the
probe of 1000 samples, and as many steps again, beside which it is written, less the same steps without it and less a
bare forward pass of the probe; as a share of an epoch. One batch in ten: the training batches themselves, every tenth
step."""
BATCH_SIZE = 128
ROUNDS = 120
BLOCK_SECONDS = 0.04
PROBE_EVERY = 20
PATIENCE = 30.0
"""Seconds after which a measure ends with the rounds it has, at least a quarter of those planned."""
EPOCH_IMAGES = 60_000
EPOCH_BLOCK_SECONDS = 0.25
BATCH_PERIOD = 10


@dataclass
class Loop:
    """A model in training on the images, with or without a recorder."""

    subject: Subject
    recorder: Recorder | None = None
    after_step: Callable[..., None] | None = None
    epochs: Iterator[int] = field(default_factory=lambda: iter(()))
    start: int = 0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.subject.model.parameters(), lr=0.01)
        self.synchronize = torch.cuda.synchronize if self.subject.inputs.is_cuda else lambda: None

    def step(self) -> torch.Tensor:
        """One step on the next batch."""
        rows = slice(self.start, self.start + BATCH_SIZE)
        self.start += BATCH_SIZE
        if self.start + BATCH_SIZE > len(self.subject.inputs):
            self.start = 0
        loss = functional.cross_entropy(self.subject.model(self.subject.inputs[rows]), self.subject.labels[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def block(self, steps: int) -> None:
        """So many steps; the device is waited for at the end alone."""
        note = self.after_step
        for _ in range(steps):
            loss = self.step()
            if note is not None:
                note(loss=loss)
        self.synchronize()

    def begin(self, recorder: Recorder) -> None:
        """Open the recorder and enter its first epoch."""
        self.recorder, self.after_step = recorder.__enter__(), recorder.step
        self.epochs = recorder.epochs(10**9)
        next(self.epochs)

    def end_epoch(self) -> None:
        """Record an epoch and enter the next one."""
        if self.recorder is not None:
            self.recorder.epoch()
            next(self.epochs)

    def wait(self) -> None:
        """Wait until what was recorded is on disk."""
        if self.recorder is not None:
            self.recorder.flush()

    def close(self) -> None:
        """End the epoch under way, and the recording, without an error of its own."""
        if self.recorder is not None:
            self.recorder.epoch()
            self.epochs.close()  # type: ignore[attr-defined]
            self.recorder.__exit__(None, None, None)
            assert self.recorder.degraded is None, self.recorder.degraded


def make_loops(name: str, arms: Sequence[str], *, images: int, device: str) -> dict[str, Loop]:
    """The same model for every arm, from the same seed."""
    data, labels, _ = pictures(images)
    return {arm: Loop(subject(name, data, labels, device=device)) for arm in arms}


def make_recorder(path: Path, loop: Loop, **options: Any) -> Recorder:
    """A recorder of every activation function, on a thousand of the images."""
    probe = Probe(loop.subject.inputs[:SAMPLES].cpu(), size=None)
    reduction = loop.subject.reduction or None
    return Recorder(
        path, loop.subject.model, sites=list(loop.subject.sites), probe=probe, reduction=reduction, **options
    )


def check_bare(model: torch.nn.Module) -> None:
    """Raise AssertionError if any hook is attached to the model, or to all modules."""
    everywhere = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]
    assert everywhere
    assert not any(getattr(torch_module, name) for name in everywhere), "a hook is attached to all modules"
    for path, module in model.named_modules():
        for name, hooks in vars(module).items():
            assert not (name.endswith("_hooks") and hooks), f"{name} of {path or 'the model'}: a hook is attached"


def take_turns(
    loops: dict[str, Loop], work: Callable[[Loop], None], rounds: int, *, between: Callable[[int], None]
) -> dict[str, list[float]]:
    """Return the seconds of every block of every arm; ``between`` runs before each round and is not counted."""
    order, generator, start = list(loops), random.Random(0), time.perf_counter()
    times: dict[str, list[float]] = {arm: [] for arm in loops}
    for index in range(rounds):
        if is_enough(index, rounds, start):
            break
        between(index)
        generator.shuffle(order)
        for arm in order:
            times[arm].append(timed(lambda arm=arm: work(loops[arm])))
    return times


def is_enough(done: int, rounds: int, start: float) -> bool:
    """Return whether time is up after so many rounds."""
    return 4 * done >= rounds and time.perf_counter() - start > PATIENCE


def writer_seconds(loop: Loop) -> float:
    """Processor time that the writer's thread has used so far."""
    assert loop.recorder is not None
    return float(loop.recorder.statistics.writer_cpu_seconds)


def ratio_text(times: dict[str, list[float]], arm: str, base: str) -> str:
    """Return the median ratio of two arms with its interval."""
    return median_interval([one / other for one, other in zip(times[arm], times[base], strict=True)]).text()


def steps_in(loop: Loop, seconds: float) -> int:
    """Return how many steps take about so long, at least three."""
    fastest = min(timed(lambda: loop.block(5)) for _ in range(8)) / 5
    return max(3, round(seconds / fastest))


def between_probes(name: str, folder: Path, *, device: str = "cpu", rounds: int = ROUNDS, images: int = 6400) -> Row:
    """Compare steps between probes with those of an unrecorded loop."""
    arms = ["recorded", "unrecorded", "unrecorded twin"]
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    steps = 0
    for turn in range(len(arms)):
        loops = make_loops(name, arms[turn:] + arms[:turn], images=images, device=device)
        recorded = loops["recorded"]
        recorded.begin(make_recorder(folder / f"run-{turn}", recorded, strict=True))
        for loop in loops.values():
            loop.block(20)
        steps = steps or steps_in(loops["unrecorded"], BLOCK_SECONDS)

        def between(index: int, recorded: Loop = recorded) -> None:
            check_bare(recorded.subject.model)
            if index % PROBE_EVERY == 0:
                recorded.end_epoch()
                recorded.wait()
                check_bare(recorded.subject.model)

        work = partial(Loop.block, steps=steps)
        found = take_turns(loops, work, -(-rounds // len(arms)), between=between)
        for arm in arms:
            times[arm] += found[arm]
        recorded.close()
    per_step = statistics.median(times["unrecorded"]) / steps
    values = {
        "recorded / unrecorded": ratio_text(times, "recorded", "unrecorded"),
        "twin / unrecorded": ratio_text(times, "unrecorded twin", "unrecorded"),
        "ms per step": f"{per_step * 1e3:.3f}",
        "rounds x steps": f"{len(times['unrecorded'])} x {steps}",
    }
    return Row("steps between probes", name, values, unit="")


def epoch_cost(name: str, folder: Path, *, device: str = "cpu", rounds: int = 60, images: int = 6400) -> Row:
    """Compare steps with a probe in their middle, which is written beside the second half, with the same without."""
    loops = make_loops(name, ("recorded", "unrecorded"), images=images, device=device)
    recorded = loops["recorded"]
    recorded.begin(make_recorder(folder / "run", recorded, strict=True))
    probe = [batch.to(device) for batch in loops["unrecorded"].subject.inputs[:SAMPLES].split(256)]

    def forward() -> None:
        with evaluating(loops["unrecorded"].subject.model):
            for batch in probe:
                loops["unrecorded"].subject.model(batch)
        loops["unrecorded"].synchronize()

    blocked: list[float] = []

    def work(loop: Loop) -> None:
        loop.block(steps)
        seconds = timed(loop.end_epoch)
        if loop.recorder is not None:
            blocked.append(seconds)
        loop.block(steps)

    for loop in loops.values():
        loop.block(20)
    bare = statistics.median([timed(forward) for _ in range(12)][2:])
    steps = steps_in(loops["unrecorded"], EPOCH_BLOCK_SECONDS)
    work(recorded)
    blocked.clear()
    before = writer_seconds(recorded)
    times = take_turns(loops, work, rounds, between=lambda _: recorded.wait())
    recorded.wait()
    writing = (writer_seconds(recorded) - before) / len(blocked)
    recorded.close()
    epoch = statistics.median(times["unrecorded"]) / (2 * steps) * (EPOCH_IMAGES / BATCH_SIZE)
    pairs = zip(times["recorded"], times["unrecorded"], strict=True)
    costs = [100 * (one - other - bare) / epoch for one, other in pairs]
    found = {
        "cost of recording, % of the epoch": median_interval(costs).text(".2f"),
        "epoch, unrecorded, ms": f"{epoch * 1e3:.0f}",
        "bare forward of the probe, ms": f"{bare * 1e3:.2f} ({bare / epoch:.2%})",
        "blocked in epoch(), forward included, ms": f"{statistics.median(blocked) * 1e3:.2f}",
        "writer's CPU per epoch, ms": f"{writing * 1e3:.2f} ({writing / epoch:.2%})",
        "rounds x steps": f"{len(costs)} x {2 * steps}",
    }
    return Row(f"an epoch of {EPOCH_IMAGES} images, batches of {BATCH_SIZE}", name, found, unit="")


def batches_cost(name: str, folder: Path, *, device: str = "cpu", rounds: int = 30, images: int = 12_800) -> Row:
    """Compare steps of which every tenth is recorded, without and with gradients."""
    loops = make_loops(name, ("activations", "with gradients", "unrecorded"), images=images, device=device)
    for arm, gradients in (("activations", False), ("with gradients", True)):
        options: dict[str, Any] = {"batches": every(steps=BATCH_PERIOD), "batch_size": BATCH_SIZE, "strict": True}
        loops[arm].begin(make_recorder(folder / arm, loops[arm], gradients=gradients, **options))
    steps = 10 * BATCH_PERIOD

    def between(_: int) -> None:
        for loop in loops.values():
            loop.wait()

    for loop in loops.values():
        loop.block(BATCH_PERIOD)
    times = take_turns(loops, lambda loop: loop.block(steps), rounds, between=between)
    found = {}
    for arm in ("activations", "with gradients"):
        pairs = zip(times[arm], times["unrecorded"], strict=True)
        per_step = [(one - other) / (steps / BATCH_PERIOD) * 1e3 for one, other in pairs]
        found[f"{arm}: recorded / unrecorded"] = ratio_text(times, arm, "unrecorded")
        found[f"{arm}: per recorded step, ms"] = median_interval(per_step).text(".2f")
        found[f"{arm}: in the training thread alone, ms"] = blocked_text(loops[arm])
        loops[arm].close()
    found["step, unrecorded, ms"] = f"{statistics.median(times['unrecorded']) / steps * 1e3:.2f}"
    return Row(f"one batch of {BATCH_SIZE} in {BATCH_PERIOD}", name, found, unit="")


def blocked_text(loop: Loop, *, periods: int = 40) -> str:
    """Return how much longer the two steps of a period take that make ready for a batch and hand it over.

    Nothing is left to write beside them.
    """
    assert loop.after_step is not None
    costs = []
    for _ in range(periods):
        loop.wait()
        seconds = [timed(lambda: loop.block(1)) for _ in range(BATCH_PERIOD)]
        costs.append((sum(seconds[-2:]) - 2 * statistics.median(seconds[1:-2])) * 1e3)
    return median_interval(costs).text(".2f")


def rows(*, device: str = "cpu") -> Iterator[Row]:
    """Measure, each model in a folder of its own below the working directory (not a tmpfs)."""
    plan: list[tuple[Callable[..., Row], tuple[str, ...]]] = [
        (between_probes, ("MLP, 8 x 64", "MLP, 2 x 512", "CNN", "transformer")),
        (epoch_cost, ("MLP, 2 x 512", "CNN")),
        (batches_cost, ("MLP, 2 x 512", "CNN")),
    ]
    for measure, names in plan:
        for name in names:
            with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
                yield measure(name, Path(folder), device=device)
