"""Tiny real models and data, made on the spot: no hub, no download, milliseconds a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from emo_hf.integrations.accelerate import unwrap

LABELS = 3


def classifier(seed: int = 0, dropout: float = 0.1) -> BertForSequenceClassification:
    """A BERT of 12,000 parameters, the same for the same seed."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=LABELS, max_position_embeddings=16, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def examples(count: int = 37, seed: int = 0) -> list[dict[str, Any]]:
    """Token sequences whose label can be read off their first token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 64, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % LABELS} for row in tokens]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Quiet TrainingArguments on the CPU, logging every step."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "optim": "emonavi", "learning_rate": 1e-3, "logging_steps": 1,
        "per_device_train_batch_size": 4, "num_train_epochs": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(**(settings | changes))


def trainer(folder: Path, *, model: Any = None, data: Any = None, kind: Any = Trainer, **changes: Any) -> Any:
    """A Trainer over `classifier()` and `examples()`; keywords that it knows go to it, others to its arguments.

    `kind` is the class of it.
    """
    own = {key: changes.pop(key) for key in list(changes) if key in TRAINER_KEYWORDS}
    made = kind(
        model=classifier() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=examples() if data is None else data,
        **own,
    )
    made.remove_callback(PrinterCallback)
    return made


TRAINER_KEYWORDS = ("callbacks", "compute_loss_func", "eval_dataset", "optimizers", "optimizer_cls_and_kwargs")


def train_lines(made: Trainer) -> list[dict[str, Any]]:
    """The training lines of a Trainer's log history."""
    return [line for line in made.state.log_history if "loss" in line]


def felt_by(emo: Any) -> list[float]:
    """The losses that an emotion is given from now on."""
    felt: list[float] = []
    feel = emo._engine.law.feel
    emo._engine.law.feel = lambda loss: (felt.append(loss), feel(loss))[1]
    return felt


class Felt(TrainerCallback):
    """Notes each loss that the emotion is given."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.losses = felt_by(unwrap(optimizer))
