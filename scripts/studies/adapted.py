"""A small language model of Wikipedia's bytes that is taught to answer, by examples or by preferences, with LoRA."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from language import Transformer, as_bytes, wikipedia
from study_data import SPLIT, beside, epochs, halves, json_lines
from torch import nn
from torch.nn import functional

from emo_hf.study.task import Task

LENGTH = 128
PRETRAINING = 1000  # steps
HELD_OUT = 100  # examples, in two halves
Texts = tuple[torch.Tensor, torch.Tensor]  # bytes, and where the answer stands


def instructions(seed: int, batch: int = 8, rank: int = 8) -> Task:
    """Instructions and answers (self-instruct); the loss is that of the answers' bytes.

    Args:
        seed: of the adapter, which torch has been seeded with.
        batch: examples a step.
        rank: of the adapter.
    """
    lines = json_lines("instruct_self_instruct", "prompt_completion.jsonl")
    ids, answers = _encoded([(line["prompt"], line["completion"]) for line in lines])
    size = len(lines) - min(HELD_OUT, len(lines) // 3)
    held_out = halves(torch.arange(size, len(lines)))

    def loss(model: nn.Module, texts: Texts) -> torch.Tensor:
        return -_log_likelihood(model, texts).sum() / texts[1][:, 1:].sum()

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        texts, said = beside(model, ids[held_out[half]], answers[held_out[half]])
        return {"loss": loss(model, (texts, said)).item()}

    batches = epochs(lambda chosen: (ids[chosen], answers[chosen]), size, batch)
    return Task(model=_adapted(rank), train_batches=batches, loss=loss, evaluate=evaluate)


def preferences(seed: int, batch: int = 4, rank: int = 8, beta: float = 0.1) -> Task:
    """Direct preference optimization against the model before training.

    Args:
        seed: of the adapter, which torch has been seeded with.
        batch: pairs a step.
        rank: of the adapter.
        beta: how dear it is to differ from the model before.
    """
    sets = [json_lines("pref_dpo_en_demo", "standard", f"{name}.jsonl") for name in ("train", "test")]
    lines = [line for each in sets for line in each]
    pairs = [_encoded([(line["prompt"], line[kind]) for line in lines]) for kind in ("chosen", "rejected")]
    before = _pretrained()
    with torch.no_grad():
        known = [torch.cat([_log_likelihood(before, (i, a)) for i, a in _parts(texts)]) for texts in pairs]
    size = len(lines) - min(HELD_OUT, len(lines) // 3)
    held_out = halves(torch.arange(size, len(lines)))

    def part(chosen: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[chosen] for texts, likely in zip(pairs, known, strict=True) for tensor in (*texts, likely))

    def margin(model: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        good, good_answer, good_before, bad, bad_answer, bad_before = inputs
        gained = _log_likelihood(model, (good, good_answer)) - good_before
        return beta * (gained - (_log_likelihood(model, (bad, bad_answer)) - bad_before))

    def loss(model: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return -functional.logsigmoid(margin(model, inputs)).mean()

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        margins = margin(model, beside(model, *part(held_out[half])))
        return {
            "loss": -functional.logsigmoid(margins).mean().item(),
            "chosen_is_better": (margins > 0).float().mean().item(),
        }

    return Task(model=_adapted(rank), train_batches=epochs(part, size, batch), loss=loss, evaluate=evaluate)


def _parts(texts: Texts) -> Iterator[Texts]:
    yield from zip(texts[0].split(50), texts[1].split(50), strict=True)


def _log_likelihood(model: nn.Module, texts: Texts) -> torch.Tensor:
    """Of each answer, (texts,)."""
    ids, answers = texts
    scores = functional.log_softmax(model(ids[:, :-1]), -1)
    of_each = scores.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (of_each * answers[:, 1:]).sum(1)


def _encoded(pairs: list[tuple[str, str]]) -> Texts:
    """The end of each prompt and the beginning of its answer: half of the length each at most."""
    ids = torch.zeros(len(pairs), LENGTH, dtype=torch.long)
    answers = torch.zeros(len(pairs), LENGTH)
    for row, (prompt, answer) in enumerate(pairs):
        asked = as_bytes(prompt.strip()[-LENGTH // 2 + 1 :] + "\n")
        said = as_bytes(answer.strip() or " ")[: LENGTH - len(asked)]
        ids[row, : len(asked) + len(said)] = torch.cat([asked, said])
        answers[row, len(asked) : len(asked) + len(said)] = 1.0
    return ids, answers


def _adapted(rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["qkv", "out", "wide", "narrow"])
    adapted: nn.Module = get_peft_model(_pretrained(), config)
    return adapted


def _pretrained() -> Transformer:
    """Trained once on this machine, with AdamW at 3e-3 decaying linearly, and kept in the temporary folder."""
    kept = Path(tempfile.gettempdir()) / f"emo_hf_study_model_{LENGTH}_{PRETRAINING}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SPLIT)
        task = wikipedia(SPLIT, batch=8, length=LENGTH)
        model = task.model
        assert isinstance(model, Transformer)
        if kept.is_file():
            model.load_state_dict(torch.load(kept, weights_only=True))
            return model
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        batches = iter(task.train_batches(SPLIT))
        for step in range(PRETRAINING):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / PRETRAINING)
            optimizer.zero_grad()
            task.loss(model, next(batches)).backward()
            optimizer.step()
    model.zero_grad()  # else they would count in the norm that is clipped
    part = kept.with_suffix(f".{os.getpid()}")
    torch.save(model.state_dict(), part)
    part.replace(kept)
    return model
