"""Language models of bytes, from scratch: Shakespeare's plays, and Wikipedia as XQuAD quotes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from study_data import SPLIT, beside, chance, generator, half_way, path, windows
from torch import nn
from torch.nn import functional

from emo_hf.study.task import HALVES, JUDGE, Task

PASS = 1000  # batches that count as one

Batches = Callable[[int], Iterator[tuple[torch.Tensor]]]


class Transformer(nn.Module):
    """A decoder with learned positions, and embeddings that are the output's weights."""

    def __init__(self, vocabulary: int = 128, width: int = 64, layers: int = 2, heads: int = 4, length: int = 64):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


class Block(nn.Module):
    """Attention to what came before, and a feed-forward layer, each after a norm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.qkv(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))  # type: ignore[no-any-return]


def plays(
    seed: int, batch: int = 16, length: int = 64, shift_at: int = 0, width: int = 64, layers: int = 2, heads: int = 4
) -> Task:
    """Shakespeare (tinyshakespeare); from step `shift_at` on Wikipedia, if that is not 0.

    Args:
        seed: of the weights, which torch has been seeded with.
        batch: stretches of text a step.
        length: bytes of each.
        shift_at: the step at which the text changes.
        width, layers, heads: of the model.
    """
    first, second = _split(_plays()), _split(_wikipedia())
    batches, held_out = windows(first[0], batch, length, PASS), first[1]
    if shift_at:
        batches, held_out = half_way(batches, windows(second[0], batch, length, PASS), shift_at), second[1]
    return _task(Transformer(width=width, layers=layers, heads=heads, length=length), batches, held_out)


def wikipedia(seed: int, batch: int = 16, length: int = 64) -> Task:
    """Paragraphs of Wikipedia (the contexts of XQuAD)."""
    train, held_out = _split(_wikipedia())
    return _task(Transformer(length=length), windows(train, batch, length, PASS), held_out)


def _plays() -> torch.Tensor:
    return as_bytes(path("tinyshakespeare", "input.txt").read_text(encoding="utf-8"))


def _wikipedia() -> torch.Tensor:
    rows = json.loads(path("squad_xquad_en", "train.json").read_text(encoding="utf-8"))["data"]
    return as_bytes("\n".join(dict.fromkeys(row["context"] for row in rows)))


def as_bytes(text: str) -> torch.Tensor:
    """A text as bytes of ASCII; whatever else is a question mark."""
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()


def _split(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first nine tenths, and the rest."""
    at = len(text) * 9 // 10
    return text[:at], text[at:]


def _task(net: Transformer, batches: Batches, held_out: torch.Tensor) -> Task:
    length = len(net.positions.weight)
    judged = {}
    for half, text in zip(HALVES, held_out.tensor_split(2), strict=True):
        starts = torch.randint(len(text) - length, (192,), generator=generator(SPLIT))
        judged[half] = text[starts[:, None] + torch.arange(length + 1)]

    def loss(model: nn.Module, texts: tuple[torch.Tensor]) -> torch.Tensor:
        (ids,) = texts
        return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        return {"loss": loss(model, (beside(model, judged[half])[0],)).item()}

    known = chance(judged[JUDGE].flatten())
    return Task(model=net, train_batches=batches, loss=loss, evaluate=evaluate, chance=known)
