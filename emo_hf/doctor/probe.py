"""The script that the doctor runs where none is named, as any other: a Trainer with `--optim emonavi`, else a loop."""

from __future__ import annotations

import importlib.util
import itertools
import sys


def train() -> None:
    """A Trainer with gradient accumulation, told what to do by `sys.argv`."""
    from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments

    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16))
    examples = [{"input_ids": [index % 32] * 4, "labels": index % 2} for index in range(64)]
    Trainer(model, arguments, train_dataset=examples).train()


def loop() -> None:
    """A loop without anything of Hugging Face, which shows its losses itself."""
    import torch

    from emo_hf import EmoNavi

    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = EmoNavi([weight], lr=0.1)
    for _ in itertools.count():
        optimizer.zero_grad()
        loss = weight.square().sum()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()


ARGUMENTS = ("--optim", "emonavi", "--gradient_accumulation_steps", "2", "--num_train_epochs", "100",
             "--disable_tqdm", "true", "--dataloader_pin_memory", "false", "--save_strategy", "no",
             "--output_dir", "scratch")  # fmt: skip

if __name__ == "__main__":
    sys.argv += ARGUMENTS
    train() if importlib.util.find_spec("transformers") else loop()
