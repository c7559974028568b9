"""Reviews, questions and names: models of words that begin from nothing."""

from __future__ import annotations

import torch
from study_data import beside, chance, epochs, halves, json_lines, judged, rows, with_noise, word_ids
from torch import nn
from torch.nn import functional

from emo_hf.study.task import JUDGE, Task

WORDS = 5000


class Bag(nn.Module):
    """The mean of a text's word vectors, and a linear layer."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS + 2, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids))  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """A GRU in both directions that gives each word a tag; or, by its means, each text a class."""

    def __init__(self, classes: int, width: int = 32, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.words = nn.Embedding(WORDS + 2, width, padding_idx=0)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        seen, _ = self.rnn(self.words(ids))
        return self.head(seen.mean(1) if self.whole else seen)  # type: ignore[no-any-return]


def reviews(seed: int, noise: float = 0.0, batch: int = 32) -> Task:
    """Sentiment of film reviews (rt_polarity), bag of words; overfits within some passes.

    Args:
        seed: of the weights, which torch has been seeded with.
        noise: share of the training labels that are drawn anew.
        batch: texts a step.
    """
    return _texts(Bag(2), ("rt_polarity", "train.csv"), ("rt_polarity", "validation.csv"), 2, noise, batch)


def questions(seed: int, noise: float = 0.0, batch: int = 32) -> Task:
    """What a question asks for (TREC, six answers), GRU."""
    train, held_out = ("trec", "train_int.csv"), ("trec", "test_int.csv")
    return _texts(Tagger(6, whole=True), train, held_out, 6, noise, batch, length=20, moved=500)


def _texts(
    net: nn.Module,
    train: tuple[str, str],
    held_out: tuple[str, str],
    classes: int,
    noise: float,
    batch: int,
    length: int = 40,
    moved: int = 0,  # examples of training that are held out too
) -> Task:
    learned, unseen = rows(*train), rows(*held_out)
    ids = word_ids([line["sentence"].lower().split() for line in [*learned, *unseen]], known=WORDS, length=length)
    labels = torch.tensor([int(line["label"]) for line in [*learned, *unseen]])
    size = len(learned) - min(moved, len(learned) // 10)
    held_out = halves(torch.arange(size, len(labels)))
    seen = with_noise(labels[:size], noise, classes)

    def loss(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(pair[0]), pair[1])

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        words, right = beside(model, ids[held_out[half]], labels[held_out[half]])
        return judged(model(words), right)

    batches = epochs(lambda chosen: (ids[chosen], seen[chosen]), size, batch)
    known = chance(labels[held_out[JUDGE]])
    return Task(model=net, train_batches=batches, loss=loss, evaluate=evaluate, chance=known)


def names(seed: int, noise: float = 0.0, batch: int = 16, length: int = 24) -> Task:
    """Names of people, places and products in posts (WNUT 17), a GRU that tags words."""
    sets = [json_lines("ner_wnut17", f"{split}.json") for split in ("train", "validation")]
    lines = [line for each in sets for line in each]
    ids = word_ids([[word.lower() for word in line["tokens"]] for line in lines], known=WORDS, length=length)
    numbers = {tag: number for number, tag in enumerate(sorted({tag for line in lines for tag in line["ner_tags"]}))}
    tags = torch.full(ids.shape, -100)
    for row, line in enumerate(lines):
        seen = [numbers[tag] for tag in line["ner_tags"][:length]]
        tags[row, : len(seen)] = torch.tensor(seen)
    size = len(sets[0])
    held_out = halves(torch.arange(size, len(lines)))
    learned = torch.where(tags[:size] >= 0, with_noise(tags[:size], noise, len(numbers)), -100)

    def loss(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        words, right = beside(model, ids[held_out[half]], tags[held_out[half]])
        scores = model(words)
        named = right != numbers["O"]
        found = (scores.argmax(-1) == right)[named & (right >= 0)].float().mean().item()
        return {"loss": functional.cross_entropy(scores.flatten(0, 1), right.flatten()).item(), "named_words": found}

    batches = epochs(lambda chosen: (ids[chosen], learned[chosen]), size, batch)
    said = tags[held_out[JUDGE]]
    known = chance(said[said >= 0])
    return Task(model=Tagger(len(numbers)), train_batches=batches, loss=loss, evaluate=evaluate, chance=known)
