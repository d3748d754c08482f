"""Record a training run under Hugging Face's Trainer: copy this file and put your model and data in.

A small BERT with random weights reads an image of a digit as a sentence of 64 words, one of 17 shades each; nothing is
downloaded. The script can be killed at any moment and called again: it goes on from the latest checkpoint, and the
recording goes on where that checkpoint is, in the middle of an epoch too.

    python record_transformers.py RUN [EPOCHS]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from dynome_recorder import Probe, every
from dynome_recorder.integrations.transformers import DynomeCallback


def sentences(images: np.ndarray, digits: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """What a tokenizer returns: one mapping per sample, padded to one length (here all have it)."""
    return [
        {"input_ids": torch.as_tensor(image).long(), "labels": torch.as_tensor(digit)}
        for image, digit in zip(images, digits, strict=True)
    ]


def accuracy(prediction: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    logits, digits = prediction
    return {"accuracy": float((logits.argmax(1) == digits).mean())}


def main(run: Path, epochs: int) -> None:
    set_seed(0)
    images, digits = load_digits(return_X_y=True)
    train, test = sentences(images[:1400], digits[:1400]), sentences(images[1400:], digits[1400:])
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=17,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=10,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    output = run.with_name(run.name + "-checkpoints")
    callback = DynomeCallback(
        run,
        probe=Probe(train, size=200, seed=0, labels=digits[:1400]),  # labels: for a class-balanced choice
        sites=["*.intermediate_act_fn", "bert.pooler.activation"],
        reduction="mean",  # over the 64 words: what is left are units
        schedule=every(epochs=1),
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(output),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=2e-3,
            logging_steps=5,
            eval_strategy="epoch",
            save_steps=30,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
        callbacks=[callback],
    )
    with callback:  # closes the recording where an exception ends the training
        trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")))
    print(f"epoch {trainer.state.epoch:.0f}: test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
