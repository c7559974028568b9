"""The script that the doctor runs where none is named, as any other: a Trainer with gradient accumulation."""

from __future__ import annotations

import sys

ARGUMENTS = ("--optim", "emonavi", "--gradient_accumulation_steps", "2", "--num_train_epochs", "100",
             "--disable_tqdm", "true", "--dataloader_pin_memory", "false", "--save_strategy", "no",
             "--output_dir", "scratch")  # fmt: skip


def train() -> None:
    """What `sys.argv` says is learned by a tiny model."""
    from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments

    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16))
    examples = [{"input_ids": [index % 32] * 4, "labels": index % 2} for index in range(64)]
    Trainer(model, arguments, train_dataset=examples).train()


if __name__ == "__main__":
    sys.argv += ARGUMENTS
    train()
