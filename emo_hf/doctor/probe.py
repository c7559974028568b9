"""Proves that the loss is felt: trains tiny models for 20 steps each of the ways in which people train."""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

import torch

from emo_hf.doctor.felt import first_difference, noting_felt
from emo_hf.doctor.findings import Finding, checked

STEPS = 20
ACCUMULATION = 2


def probe() -> list[Finding]:
    """The optimizer alone; a Trainer through registration; a bare accelerate loop, as far as these are installed."""
    found = [checked("optimizer", own_loop)]
    for name, package, check in (
        ("registration", "transformers", registration),
        ("trainer", "transformers", trainer),
        ("accelerate", "accelerate", accelerate_loop),
    ):
        if importlib.util.find_spec(package) is None:
            said = f'not checked, since {package} is not installed (pip install "emo_hf[hf]")'
            found.append(Finding(name=name, passed=None, said=said))
        else:
            found.append(checked(name, check))
    return found


def compared(felt: list[float], other: list[float], what: str) -> str:
    """Felt against what was logged or sent, step for step.

    Raises:
        RuntimeError: if they differ, with both numbers.
    """
    if len(felt) != len(other):
        raise RuntimeError(f"{len(other)} losses were {what}, and {len(felt)} were felt")
    wrong = first_difference(felt, other)
    if wrong is not None:
        raise RuntimeError(f"step {wrong + 1}: felt {felt[wrong]:.6g}, {what} {other[wrong]:.6g}")
    return f"{len(felt)} steps: felt {felt[0]:.4f} → {felt[-1]:.4f}, {what} {other[0]:.4f} → {other[-1]:.4f}"


def own_loop() -> str:
    """A plain loop that calls observe, without anything of Hugging Face."""
    from emo_hf import EmoNavi

    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = EmoNavi([weight], lr=0.1)
    shown = []
    with noting_felt() as noted:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = weight.square().sum()
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            shown.append(loss.item())
    return compared([loss for _, loss in noted], shown, "shown")


def registration() -> str:
    """Every name of the family as `--optim` takes it."""
    from transformers import HfArgumentParser, TrainingArguments

    from emo_hf.optim.family import FAMILY
    from emo_hf.trainer.registry import is_registered, register, unregister

    was_registered = is_registered()
    register()
    try:
        for name in FAMILY:
            arguments = ["--output_dir", "unused", "--optim", name]
            HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(arguments)
    finally:
        if not was_registered:
            unregister()
    return "--optim " + "|".join(FAMILY)


def trainer() -> str:
    """A real Trainer with gradient accumulation, through registration."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from emo_hf.trainer.registry import is_registered, register, unregister

    was_registered = is_registered()
    register()
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    examples = [{"input_ids": [index % 32] * 4, "labels": index % 2} for index in range(64)]
    try:
        with tempfile.TemporaryDirectory() as folder, noting_felt() as noted:
            arguments = TrainingArguments(
                output_dir=folder, optim="emonavi", max_steps=STEPS, logging_steps=1, learning_rate=1e-3,
                per_device_train_batch_size=4, gradient_accumulation_steps=ACCUMULATION, save_strategy="no",
                report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            made = Trainer(BertForSequenceClassification(config), arguments, train_dataset=examples)
            made.remove_callback(PrinterCallback)
            made.train()
    finally:
        if not was_registered:
            unregister()
    lines = [line for line in made.state.log_history if "loss" in line]
    without = sum("emo/scalar" not in line for line in lines)
    if without:
        raise RuntimeError(f"{len(lines)} steps were logged, {without} of them without the emotion's metrics")
    return compared([loss for _, loss in noted], [line["loss"] for line in lines], "logged")


def accelerate_loop() -> str:
    """A loop of one's own over accelerate, with its gradient accumulation."""
    from accelerate import Accelerator

    from emo_hf import EmoLynx

    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATION)
    torch.manual_seed(0)
    model: Any = torch.nn.Linear(4, 1)
    inputs = torch.randn(8, 4)
    model, optimizer = accelerator.prepare(model, EmoLynx(model.parameters(), lr=1e-2))
    sent, of_step = [], []
    with noting_felt() as noted:
        for _ in range(STEPS * ACCUMULATION):
            with accelerator.accumulate(model):
                loss = (model(inputs.to(accelerator.device)).squeeze(-1) - 1.0).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            of_step.append(loss.item())
            if len(of_step) == ACCUMULATION:
                sent.append(sum(of_step) / ACCUMULATION)
                of_step = []
    return compared([loss for _, loss in noted], sent, "sent to backward")
