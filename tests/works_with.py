"""Training situations in which a recorder must change no bit, and one loop for all of them.

`train` runs a situation under an observer. ``Nobody`` is training alone; ``Witness`` keeps what plain hooks see of an
eager twin; ``Watched`` drives a `BatchWatcher` by hand; ``Recorded`` is what users have, a `Recorder`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import random
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from recorder_training import Convolution, Dropout, Shared, dataset
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from dynome_recorder import Probe, Recorder, at, every
from dynome_recorder.capture.batches import BatchWatcher, gradient_key
from dynome_recorder.planning import lay_out_sites
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.tracing.canary import trace_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = 16
EPOCHS = 2
DUE = 3  # every third step


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


class Checkpointed(nn.Module):
    """Two blocks, the second with checkpointed activations and dropout inside."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 12), nn.Dropout(0.2), nn.ReLU(inplace=True))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if not torch.is_grad_enabled():
            return self.head(self.second(hidden))
        return self.head(checkpoint(self.second, hidden, use_reentrant=self.use_reentrant))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.linear(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(36, 12), Block(12, 12), Block(12, 12)])
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(x, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Twin(nn.Module):
    """Returns its two outputs nested."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(36, 6)
        self.right = nn.Linear(36, 6)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"pair": (torch.tanh(self.left(x)), self.right(x)), "size": len(x)}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.twin(torch.flatten(x, 1))["pair"]
        return self.head(left * right)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def wrap(model: nn.Module) -> nn.Module:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(fullgraph=True, backend="aot_eager")
    return model


def compile_parts(model: nn.Module) -> nn.Module:
    for part in model.blocks:
        part.compile(fullgraph=True, backend="aot_eager")
    return model


@dataclass(frozen=True)
class Situation:
    """One way to train.

    Attributes
    ----------
    model, sites, reduction
        What is trained, and what of it is recorded.
    prepare
        Turns the model into what the loop calls.
    autocast
        Whether the forward runs under bfloat16 autocast.
    passes
        Into how many micro-batches, of uneven size, a batch is cut.
    average, save
        Deep-copy the model after every step, or pickle it after every epoch, and go on with what the copies say.
    workers
        How the data loader starts a worker; None: none.
    one_size
        Whether all batches, and those of validation, have the same size.
    """

    model: Callable[[], nn.Module] = Plain
    sites: tuple[str, ...] = ("1", "2", "3", "4")
    reduction: object = None
    prepare: Callable[[nn.Module], nn.Module] = as_it_is
    autocast: bool = False
    passes: int = 1
    average: bool = False
    save: bool = False
    workers: str | None = None
    has_gradients: bool = True
    one_size: bool = False


SHARED = ("act", "act@1", "act@2", "shared", "shared@1")
CONVOLUTION = ("conv1", "norm1", "relu", "relu@1", "norm2")
SITUATIONS = {
    "plain": Situation(),
    "compiled": Situation(prepare=wrap, has_gradients=False),
    "compiled, dropout": Situation(model=Dropout, prepare=wrap, sites=("1", "2", "3", "5"), has_gradients=False),
    "compiled in place, accumulated": Situation(
        model=Shared, prepare=compile_in_place, sites=SHARED, passes=2, has_gradients=False
    ),
    "compiled convolution": Situation(model=Convolution, sites=CONVOLUTION, prepare=wrap, has_gradients=False),
    "compiled in parts": Situation(
        model=Blocks, prepare=compile_parts, sites=("blocks.0.act", "blocks.1.linear", "blocks.2"), has_gradients=False
    ),
    "compiled, copied and saved": Situation(prepare=wrap, average=True, save=True, has_gradients=False),
    "compiled, nested": Situation(
        model=Nested, prepare=wrap, sites=("twin:pair.0", "twin:pair.1"), has_gradients=False
    ),
    "autocast": Situation(autocast=True),
    "checkpointed": Situation(
        model=lambda: Checkpointed(use_reentrant=False), sites=("first.2", "second.0", "second.2")
    ),
    "checkpointed, reentrant": Situation(
        model=lambda: Checkpointed(use_reentrant=True), sites=("first.2", "second.0", "second.2"), has_gradients=False
    ),
    "accumulated": Situation(passes=3),
    "in place": Situation(model=Dropout, sites=("1", "2", "3", "5")),
    "averaged": Situation(model=Dropout, average=True),
    "saved": Situation(model=Dropout, save=True),
    "forked workers": Situation(workers="fork"),
    "batch norm": Situation(model=Convolution, sites=CONVOLUTION),
    "batch norm, flattened": Situation(model=Convolution, sites=CONVOLUTION, reduction="flatten"),
    "shared": Situation(model=Shared, sites=SHARED),
    "nested": Situation(model=Nested, sites=("twin:pair.0", "twin:pair.1")),
    "recurrent": Situation(model=Recurrent, sites=("lstm:0",), reduction="tokens"),
}


class Nobody:
    """Training alone."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation

    def open(self, model: nn.Module, given: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def epochs(self) -> range:
        return range(1, EPOCHS + 1)

    def forward(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def step(self, loss: torch.Tensor) -> None:
        pass

    def epoch(self) -> None:
        pass


class Witness(Nobody):
    """Clones of everything that plain hooks see: lists over steps of site -> (row, unit) in the output's own dtype."""

    def __init__(self, situation: Situation) -> None:
        super().__init__(situation)
        self.counts: dict[str, int] = {}
        self.now: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.steps: list[dict[str, torch.Tensor]] = []

    def open(self, model: nn.Module, given: nn.Module) -> contextlib.AbstractContextManager[object]:
        self.model = given
        return contextlib.nullcontext()

    def hook(self, path: str):
        def see(module, arguments, output) -> None:
            call = self.counts.get(path, 0)
            self.counts[path] = call + 1
            for site in self.situation.sites:
                name, _, inside = site.partition(":")
                if name not in ((path, f"{path}@0") if call == 0 else (f"{path}@{call}",)):
                    continue
                tensor = output
                for key in filter(None, inside.split(".")):
                    tensor = tensor[int(key) if key.isdigit() else key]
                self.now[site].append(self.reduce(tensor.detach().clone()))
                if tensor.requires_grad:
                    tensor.register_hook(functools.partial(self.see_gradient, site, len(self.now[site])))

        return see

    def see_gradient(self, site: str, number: int, gradient: torch.Tensor) -> None:
        assert len(self.now[gradient_key(site)]) == number - 1
        self.now[gradient_key(site)].append(self.reduce(gradient.clone()))

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        if self.situation.reduction == "tokens":
            return values.reshape(-1, values.shape[-1])
        if values.ndim == 4 and self.situation.reduction is None:
            return values.mean((2, 3))
        return values.reshape(len(values), -1)

    @contextlib.contextmanager
    def forward(self):
        self.counts.clear()
        paths = {site.partition(":")[0].partition("@")[0] for site in self.situation.sites}
        handles = [self.model.get_submodule(path).register_forward_hook(self.hook(path)) for path in paths]
        yield
        for handle in handles:
            handle.remove()

    def step(self, loss: torch.Tensor) -> None:
        self.steps.append({name: torch.cat(values) for name, values in self.now.items()})
        self.now.clear()


class Watched(Nobody):
    """A `BatchWatcher` by hand, due every third step: lists over due steps as the witness has them."""

    def __init__(self, situation: Situation, *, gradients: bool = False) -> None:
        super().__init__(situation)
        self.gradients = gradients
        self.due: list[dict[str, torch.Tensor]] = []
        self.count = 0

    @contextlib.contextmanager
    def open(self, model: nn.Module, given: nn.Module):
        self.layouts = layouts_of(model, self.situation.sites, reduction=self.situation.reduction)
        self.watcher = BatchWatcher(given, self.layouts, gradients=self.gradients, rows=BATCH)
        self.watcher.attach()
        self.arm()
        yield
        self.watcher.detach()
        assert count_hooks(given) == 0

    def arm(self) -> None:
        if (self.count + 1) % DUE == 0:
            self.slot = make_slot(self.layouts, rows=BATCH, gradients=self.gradients)
            self.watcher.arm(self.slot)

    def step(self, loss: torch.Tensor) -> None:
        self.count += 1
        if self.count % DUE == 0:
            collected = self.watcher.collect()
            names = {layout.site.name: layout.rows_per_sample for layout in self.layouts}
            self.due.append(
                {
                    name: values[: collected.rows * names[name.removesuffix(gradient_key(""))]].clone()
                    for name, values in self.slot.targets.items()
                }
            )
        self.arm()


class Recorded(Nobody):
    """A `Recorder`, as users have it: lists over due steps, read back from the recording, as the witness has them."""

    def __init__(self, situation: Situation, path: Path, *, probe: bool, batches: bool, gradients: bool) -> None:
        super().__init__(situation)
        self.path = path
        self.options: dict[str, object] = {"schedule": every(epochs=1) | every(steps=2) if probe else at(0)}
        if batches:
            self.options |= {"batches": every(steps=DUE), "batch_size": BATCH, "gradients": gradients}

    def open(self, model: nn.Module, given: nn.Module) -> contextlib.AbstractContextManager[object]:
        self.recorder = Recorder(
            self.path,
            given,
            sites=list(self.situation.sites),
            reduction=self.situation.reduction,
            probe=Probe(dataset(), size=24, seed=3, batch_size=10),
            weights=every(epochs=1),
            **({"strict": True} | self.options),
        )
        return self.recorder

    def epochs(self):
        return self.recorder.epochs(EPOCHS)

    def step(self, loss: torch.Tensor) -> None:
        self.recorder.step(loss=loss)

    def epoch(self) -> None:
        self.recorder.epoch(note=1.0)

    @property
    def due(self) -> list[dict[str, torch.Tensor]]:
        manifest = read_manifest(self.path)
        found = []
        for record, index in manifest.snapshots("batches"):
            there = manifest.batch_rows(record)
            step: dict[str, torch.Tensor] = {}
            for entries, key in ((manifest.batches, str), (manifest.gradients, gradient_key)):
                for site, entry in entries.items():
                    values = manifest.array(entry["path"])[index]
                    step[key(site)] = torch.from_numpy(values[np.repeat(there, len(values) // len(there))])
            found.append(step)
        return found


def train(situation: Situation, observer: Nobody) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train, leaning on every global generator; return losses, what copies of the model say, and the final state."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    model = situation.model()
    given = model if isinstance(observer, Witness) else situation.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(
        dataset(96 if situation.one_size else 90),  # the last batch is smaller, or not
        batch_size=BATCH,
        shuffle=True,
        num_workers=int(situation.workers is not None),
        multiprocessing_context=situation.workers,
        persistent_workers=situation.workers is not None,
    )
    losses: list[float] = []
    with observer.open(model, given):
        for _ in observer.epochs():
            for x, y in loader:
                x = x + 0.01 * np.random.standard_normal() + 0.01 * random.random() + 0.01 * torch.rand(1)
                optimizer.zero_grad()
                for part in torch.arange(len(x)).tensor_split([1, 7][: situation.passes - 1]):
                    with observer.forward(), torch.autocast("cpu", torch.bfloat16, enabled=situation.autocast):
                        loss = functional.cross_entropy(given(x[part]), y[part])
                    loss.backward()
                    losses.append(loss.item())
                optimizer.step()
                observer.step(loss)
                if situation.average:
                    losses.append(ask(copy.deepcopy(model), x))
                with torch.no_grad():  # validation, which is no pass of training
                    losses.append(given(x if situation.one_size else x[:5]).sum().item())
            if situation.save:
                losses.append(ask(load(save(model)), x))
            observer.epoch()
    return losses, model.state_dict()


def ask(other: nn.Module, x: torch.Tensor) -> float:
    """Train a copy of a model a little, with gradients enabled: nobody may notice."""
    loss = other(x).square().mean()
    loss.backward()
    return loss.item() + sum(parameter.grad.sum().item() for parameter in other.parameters())


def save(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


def load(data: bytes) -> nn.Module:
    return torch.load(io.BytesIO(data), weights_only=False)


def layouts_of(model: nn.Module, sites, *, batch=None, reduction=None, dtype="native"):
    """Return the layouts of a plain model's sites."""
    batch = dataset().tensors[0][:6] if batch is None else batch
    trace = trace_model(model, batch, forward=lambda model, batch: model(batch), samples=len(batch))
    return lay_out_sites(model, list(sites), trace=trace, reduction=reduction, dtype=dtype)


def make_slot(layouts, *, rows: int, gradients: bool = False) -> SimpleNamespace:
    """Return a stand-in for a slot: buffers that hold what was there before."""
    return SimpleNamespace(
        targets={
            key: torch.full((rows * layout.rows_per_sample, layout.units), -7, dtype=getattr(torch, layout.dtype))
            for layout in layouts
            for key in (layout.site.name, gradient_key(layout.site.name))[: 1 + gradients]
        }
    )


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )
