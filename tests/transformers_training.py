"""A tiny language model with random weights, and one training run that tests compare, kill and resume."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from dynome_recorder import Probe, every
from dynome_recorder.integrations.transformers import DynomeCallback

STEPS = 6
SITES = ["bert.encoder.layer.*.intermediate.intermediate_act_fn", "bert.pooler.activation"]


def dataset(samples: int = 48) -> list[dict[str, torch.Tensor]]:
    """Sentences of ten tokens, as a tokenizer returns them with padding to one length."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 40, (samples, 10), generator=generator)
    lengths = torch.randint(4, 11, (samples,), generator=generator)
    mask = (torch.arange(10) < lengths[:, None]).long()
    labels = (tokens[:, 0] > 20).long()
    return [
        {"input_ids": one * keep, "attention_mask": keep, "labels": label}
        for one, keep, label in zip(tokens, mask, labels, strict=True)
    ]


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=12,
        )
    )


class Losses(TrainerCallback):
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_log(self, args, state, control, logs=None, **given) -> None:
        if "loss" in logs:
            self.losses[state.global_step] = logs["loss"]


class Stop(TrainerCallback):
    """Ends the process, or raises, after so many optimizer steps of this process."""

    def __init__(self, steps: int, *, kill: bool) -> None:
        self.left = steps
        self.kill = kill

    def on_step_begin(self, args, state, control, **given) -> None:
        self.left -= 1
        if self.left < 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("stopped by the test")


def make_callback(path: Path | str, **options) -> DynomeCallback:
    options.setdefault("probe", Probe(dataset(), size=16, seed=3))
    options.setdefault("sites", SITES)
    options.setdefault("reduction", "mean")
    options.setdefault("strict", True)
    return DynomeCallback(path, **options)


def train(
    output: Path | str, *callbacks: TrainerCallback, epochs: int = 2, resume: bool | str | None = None, **options
) -> tuple[nn.Module, dict[int, float]]:
    arguments = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "epoch",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    } | options
    losses = Losses()
    trainer = Trainer(
        model=make_model(),
        args=TrainingArguments(str(output), **arguments),
        train_dataset=dataset(),
        eval_dataset=dataset(),
        callbacks=[losses, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, losses.losses


if __name__ == "__main__":
    # A child process: train, and die by SIGKILL after so many steps.
    root, steps, saving = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    options = {"save_strategy": "steps", "save_steps": saving} if saving else {"save_strategy": "epoch"}
    train(
        root / "out", make_callback(root / "run", weights=every(epochs=1)), Stop(steps, kill=True), epochs=4, **options
    )
