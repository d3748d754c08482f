"""What the demo trains: plain frozen data, the same shape for the whole demo, its quick version and the tests.

The numbers are choices for a demo that ends within two minutes on two cores [O]. The regime is the data-limited one of
the TOP paper: few training images, so that the validation loss turns before training ends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynome_analysis.datasets import DatasetName

__all__ = ["DemoSettings", "RunSettings", "demo_settings"]


@dataclass(frozen=True)
class RunSettings:
    """One network and how it is trained.

    Attributes
    ----------
    name : str
        Name of its recording below ``runs/``.
    hidden : tuple of int
        Units of each hidden layer.
    learning_rate, momentum, dropout : float
        Of stochastic gradient descent, constant over the run; dropout follows each hidden activation.
    batch_size, epochs : int
        Of the training.
    probe_size : int
        Training images whose activations are recorded.
    seed : int
        Seed of the initial weights, the order of the images and the probe.
    """

    name: str
    hidden: tuple[int, ...]
    learning_rate: float
    dropout: float
    epochs: int
    probe_size: int
    seed: int
    momentum: float = 0.9
    batch_size: int = 32

    def hyperparameters(self) -> dict[str, float | int]:
        """Return what varies between runs, as recorded and as the hyper-parameter baseline sees it."""
        return {"learning_rate": self.learning_rate, "dropout": self.dropout, "width": self.hidden[0]}


@dataclass(frozen=True)
class DemoSettings:
    """The whole demo.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    quick : bool
        Whether this is the smaller version.
    seed : int
        Seed of the data split; the runs' seeds derive from it.
    train_size, validation_size : int
        Images to train on, and to hold out for the validation loss.
    main : RunSettings
        The run that is analysed epoch by epoch.
    sweep : tuple of RunSettings
        The short runs whose final accuracy is predicted.
    patience : int
        Of the replayed stopping rules.
    prediction_epochs : int
        Epochs that the prediction may look at.
    """

    dataset: DatasetName
    quick: bool
    seed: int
    train_size: int
    validation_size: int
    main: RunSettings
    sweep: tuple[RunSettings, ...]
    patience: int = 5
    prediction_epochs: int = 5

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data; two demos with equal ones record the same values."""
        plain = asdict(self)
        for run in (plain["main"], *plain["sweep"]):
            run["hidden"] = list(run["hidden"])
        return {**plain, "sweep": list(plain["sweep"])}


# Hidden layers of the papers' data-limited experiments; digits is smaller and takes MNIST's.
_HIDDEN = {"digits": (128, 64), "mnist": (128, 64), "fashion-mnist": (256, 128)}
# A tenth of MNIST's and Fashion-MNIST's training images; about a half of the digits.
_TRAIN_SIZE = {"digits": 600, "mnist": 6000, "fashion-mnist": 6000}
_VALIDATION_SIZE = {"digits": 200, "mnist": 1000, "fashion-mnist": 1000}


def demo_settings(dataset: DatasetName, *, quick: bool, seed: int) -> DemoSettings:
    """Return the settings of the demo: 40 epochs and 48 short runs, or 20 epochs and 12 shorter runs if ``quick``."""
    learning_rates: tuple[float, ...] = (0.003, 0.03, 0.1) if quick else (0.003, 0.01, 0.03, 0.1)
    dropouts: tuple[float, ...] = (0.0, 0.5) if quick else (0.0, 0.25, 0.5)
    widths: tuple[int, ...] = (16, 64) if quick else (16, 32, 64, 128)
    sweep = tuple(
        RunSettings(
            name=f"sweep-{number:02d}",
            hidden=(width, width // 2),
            learning_rate=learning_rate,
            dropout=dropout,
            epochs=8 if quick else 12,
            probe_size=128,
            seed=1000 * (seed + 1) + number,
        )
        for number, (learning_rate, dropout, width) in enumerate(product(learning_rates, dropouts, widths))
    )
    return DemoSettings(
        dataset=dataset,
        quick=quick,
        seed=seed,
        train_size=_TRAIN_SIZE[dataset],
        validation_size=_VALIDATION_SIZE[dataset],
        main=RunSettings(
            name="main",
            hidden=_HIDDEN[dataset],
            learning_rate=0.05,
            dropout=0.0,
            epochs=20 if quick else 40,
            probe_size=500,
            seed=seed,
        ),
        sweep=sweep,
        prediction_epochs=3 if quick else 5,
    )
