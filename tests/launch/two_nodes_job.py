"""The training of two_nodes.sh: FOLDER [slowly | CHECKPOINT]. 40 steps of a tiny BERT, then a digest."""

from __future__ import annotations

import hashlib
import sys
import time
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

import emo_hf
from emo_hf.integrations.accelerate import unwrap


class Slowly(TrainerCallback):
    """Leaves time to be killed between two steps."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(0.3)


def main(folder: str, how: str = "") -> None:
    emo_hf.register()
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    tokens = torch.randint(0, 64, (80, 8))
    trainer = Trainer(
        model,
        TrainingArguments(
            folder, optim="emonavi", learning_rate=1e-3, per_device_train_batch_size=4, num_train_epochs=4,
            save_strategy="steps", save_steps=10, report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=10,
        ),
        train_dataset=[{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens],
        callbacks=[Slowly()] if how == "slowly" else [],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=how if how not in ("", "slowly") else None)
    weights = b"".join(param.detach().numpy().tobytes() for param in trainer.model.parameters())
    emotion = unwrap(trainer.optimizer).emotion
    digest = hashlib.sha256(weights + repr(emotion).encode()).hexdigest()
    print("ended", digest[:16], f"observations {emotion.observations}, scalar {emotion.scalar:.6f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
