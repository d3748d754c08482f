"""The ways people record activations now, and ours, behind one small interface.

Every way runs the same samples through the same model in one pass and keeps the same sites, averaged to (sample, unit).
They differ in how they get at the outputs and in how they write them. What they wrote is read back and compared.
"""

from __future__ import annotations

import os
from functools import reduce
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import google_crc32c
import numpy as np
import torch
import zarr

from dynome_recorder import Probe, Recorder
from dynome_recorder.capture.probe import choose_samples
from dynome_recorder.storage.format import STORE_FOLDER, encode_component

from .machine import peer
from .recording_models import Subject, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

Activations = dict[str, "NDArray[np.float32]"]


class Arm(Protocol):
    """One way of recording, opened on a subject and an empty folder."""

    def snapshot(self) -> None:
        """Record one snapshot: all that the training thread has to do."""

    def finish(self) -> None:
        """Return when what was recorded is where this way leaves it."""

    def close(self) -> None:
        """Release everything; reading comes after it."""

    def read(self, index: int) -> Activations:
        """Return one snapshot, from nothing but the folder (and, for a checkpoint, the model)."""


def by_hooks(subject: Subject) -> Activations:
    """Hooks for one pass, each keeping its output on the host."""
    kept: dict[str, torch.Tensor] = {}
    modules = dict(subject.model.named_modules())

    def keep(site: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            kept[site] = subject.reduce(output).to("cpu", copy=True)

        return hook

    handles = [modules[site].register_forward_hook(keep(site)) for site in subject.sites]
    try:
        subject.forward()
    finally:
        for handle in handles:
            handle.remove()
    return {site: tensor.numpy() for site, tensor in kept.items()}


def by_torchlens(subject: Subject) -> Activations:
    """TorchLens in its lightest way: a sparse recording of one operation per site."""
    import torchlens

    wanted = reduce(lambda left, right: left | right, map(torchlens.in_module, subject.sites))
    with evaluating(subject.model):
        records = torchlens.record(subject.model, subject.inputs, save=wanted).records
        return {
            site: subject.reduce(record.ram_payload).cpu().numpy()
            for site, record in zip(subject.sites, records, strict=True)
        }


def by_nnsight(subject: Subject, wrapped: Any) -> Activations:
    """One trace of nnsight."""
    import nnsight

    sites = subject.sites
    with evaluating(subject.model):
        with wrapped.trace(subject.inputs):
            outputs = nnsight.save({site: wrapped.get(site).output for site in sites})
        return {site: subject.reduce(output).cpu().numpy() for site, output in outputs.items()}


class Ours:
    """`Recorder`, an epoch per snapshot."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.path = subject, folder / "recording"
        self.recorder = Recorder(
            self.path,
            subject.model,
            sites=list(subject.sites),
            probe=probe_of(subject.inputs.cpu()),
            reduction=subject.reduction or None,
            strict=True,
        )
        self.recorder.__enter__()
        self.epochs = self.recorder.epochs(10**9)
        self.begun = False

    def snapshot(self) -> None:
        if self.begun:
            self.recorder.epoch()
        self.begun = True
        next(self.epochs)  # the first call records the untrained network

    def finish(self) -> None:
        self.recorder.flush()

    def close(self) -> None:
        self.epochs.close()
        self.recorder.__exit__(None, None, None)

    def read(self, index: int) -> Activations:
        store = zarr.open_group(self.path / STORE_FOLDER, mode="r")
        return {site: store[activation_path(site)][index] for site in self.subject.sites}


class NumpyFiles:
    """``np.save``, a file per site and snapshot."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder, self.count = subject, folder, 0
        for site in subject.sites:
            (folder / site).mkdir(parents=True)

    def capture(self) -> Activations:
        return by_hooks(self.subject)

    def snapshot(self) -> None:
        for site, array in self.capture().items():
            self.save(self.folder / site / f"{self.count:06}.npy", array)
        self.count += 1

    def save(self, path: Path, array: NDArray[np.float32]) -> None:
        np.save(path, array)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self, index: int) -> Activations:
        return {site: np.load(self.folder / site / f"{index:06}.npy") for site in self.subject.sites}


class DurableNumpyFiles(NumpyFiles):
    """The same, synced, with a checksum beside each file."""

    def save(self, path: Path, array: NDArray[np.float32]) -> None:
        checksum = save_durably(path, array)
        with path.with_name("checksums").open("a", encoding="ascii") as file:
            file.write(f"{path.name} {checksum:08x}\n")


class TorchLens(NumpyFiles):
    """TorchLens captures, ``np.save`` writes."""

    def capture(self) -> Activations:
        return by_torchlens(self.subject)


class NNsight(NumpyFiles):
    """nnsight captures, ``np.save`` writes."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        import nnsight

        super().__init__(subject, folder)
        self.wrapped = nnsight.NNsight(subject.model)

    def capture(self) -> Activations:
        return by_nnsight(self.subject, self.wrapped)


class TorchFiles(NumpyFiles):
    """``torch.save`` of all sites, a file per snapshot."""

    def snapshot(self) -> None:
        tensors = {site: torch.from_numpy(array) for site, array in self.capture().items()}
        torch.save(tensors, self.folder / f"{self.count:06}.pt")
        self.count += 1

    def read(self, index: int) -> Activations:
        tensors = torch.load(self.folder / f"{index:06}.pt", weights_only=True)
        return {site: tensor.numpy() for site, tensor in tensors.items()}


class Checkpoints(NumpyFiles):
    """No activations: ``torch.save`` of the parameters, to run the model again when one wants to know."""

    def snapshot(self) -> None:
        torch.save(self.subject.model.state_dict(), self.folder / f"{self.count:06}.pt")
        self.count += 1

    def read(self, index: int) -> Activations:
        self.subject.model.load_state_dict(torch.load(self.folder / f"{index:06}.pt", weights_only=True))
        return self.capture()


class Hdf5:
    """A chunked data set per site, one chunk per snapshot, grown by one and flushed."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        import h5py

        self.subject, self.path, self.count = subject, folder / "activations.h5", 0
        self.file = h5py.File(self.path, "w")

    def snapshot(self) -> None:
        for site, array in by_hooks(self.subject).items():
            if site not in self.file:
                limits = {"maxshape": (None, *array.shape), "chunks": (1, *array.shape)}
                self.file.create_dataset(site, shape=(0, *array.shape), dtype=array.dtype, **limits)
            data = self.file[site]
            data.resize(self.count + 1, axis=0)
            data[self.count] = array
        self.file.flush()
        self.count += 1

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.file.close()

    def read(self, index: int) -> Activations:
        import h5py

        with h5py.File(self.path, "r") as file:
            return {site: file[site][index] for site in self.subject.sites}


class Forward:
    """Nothing is recorded: what the pass itself takes."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject

    def snapshot(self) -> None:
        self.subject.forward()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self, index: int) -> Activations:
        raise NotImplementedError


BARE_FORWARD = "the forward pass alone"
ARMS: dict[str, tuple[Callable[[Subject, Path], Arm], str | None]] = {
    "ours": (Ours, None),
    "hooks, np.save": (NumpyFiles, None),
    "hooks, np.save, fsync, crc32c": (DurableNumpyFiles, None),
    "hooks, torch.save": (TorchFiles, None),
    "hooks, h5py": (Hdf5, "h5py"),
    "TorchLens, np.save": (TorchLens, "torchlens"),
    "nnsight, np.save": (NNsight, "nnsight"),
    "checkpoint, no activations": (Checkpoints, None),
    BARE_FORWARD: (Forward, None),
}


def is_installed(arm: str) -> bool:
    """Return whether an arm can run here."""
    needed = ARMS[arm][1]
    return needed is None or find_spec(needed) is not None


def title(arm: str) -> str:
    """Return an arm's name with the version of the library it needs."""
    needed = ARMS[arm][1]
    return arm if needed is None else f"{arm} ({peer('', needed).strip(' ()')})"


def probe_of(inputs: torch.Tensor) -> Probe:
    """Return a probe whose rows are these samples in this order, in one batch: a probe chooses in random order."""
    order = torch.from_numpy(choose_samples(len(inputs), size=None, seed=0))
    shuffled = torch.empty_like(inputs)
    shuffled[order] = inputs
    return Probe(shuffled, size=None, seed=0, batch_size=len(inputs))


def activation_path(site: str) -> str:
    """Return where a recording's store holds a site's activations."""
    return f"probe/sites/{encode_component(site)}/activation"


def save_durably(path: Path, array: NDArray[Any]) -> int:
    """Write with ``np.save``, wait for the disk, and return the checksum of the values."""
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    return int(google_crc32c.value(array.tobytes()))
