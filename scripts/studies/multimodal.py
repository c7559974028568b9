"""Pictures and captions in one space: two encoders that are trained together by one contrastive loss."""

from __future__ import annotations

import itertools
import math

import torch
from digits import TRAINING, mnist
from pictures import WORDS, compose, fits, word_numbers
from study_data import SPLIT, beside, epochs
from torch import nn
from torch.nn import functional

from emo_hf.study.task import HALVES, Task

PAIRS, HELD_OUT = 16384, 1024
Batch = tuple[torch.Tensor, ...]  # pixels, words, what is said, what is shown


class TwoEncoders(nn.Module):
    """Convolutions see pictures, a GRU reads captions; how sharply their cosines are told apart is learned too."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        self.pictures = nn.Sequential(
            *(_halved(before, after) for before, after in itertools.pairwise(channels)),
            nn.Flatten(),
            nn.Linear(4 * 4 * channels[-1], width),
        )
        self.words = nn.Embedding(len(WORDS) + 1, width, padding_idx=0)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.captions = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """s·cos(picture, caption), (pictures, captions), with s = min(exp(log_scale), 100)."""
        seen = self.pictures(pixels.float().div(127.5).sub(1.0))
        states, _ = self.rnn(self.words(words))
        known = (words != 0).unsqueeze(-1)
        read = self.captions((states * known).sum(1) / known.sum(1))
        scale = self.log_scale.exp().clamp(max=100.0)
        return scale * functional.normalize(seen) @ functional.normalize(read).T


def _halved(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.ReLU())


def captions(seed: int, noise: float = 0.0, batch: int = 64) -> Task:
    """Which caption is whose: pictures of two MNIST digits, and CLIP's loss (arXiv 2103.00020) among those of a batch.

    L = (cross-entropy over the captions of each picture + cross-entropy over the pictures of each caption)/2. Where
    the caption of one picture fits another one too, the two are left out of both sums. The digits that are judged
    by are not those of training.

    Args:
        seed: of the weights, which torch has been seeded with.
        noise: share of the training captions that are of a picture that is not there.
        batch: pairs a step, and those that are told apart in evaluation.
    """
    images, labels = mnist()
    learned = compose(images[:TRAINING], labels[:TRAINING], count=PAIRS, seed=SPLIT, noise=noise)
    unseen = compose(images[TRAINING:], labels[TRAINING:], count=HELD_OUT, seed=SPLIT + 1)
    pixels, said, shown = (
        torch.cat([getattr(pairs, name) for pairs in (learned, unseen)]) for name in ("pixels", "said", "shown")
    )
    words = word_numbers([*learned.captions, *unseen.captions])

    def part(chosen: torch.Tensor) -> Batch:
        return pixels[chosen], words[chosen], said[chosen], shown[chosen]

    def scores(model: nn.Module, pairs: Batch) -> torch.Tensor:
        pixels, words, said, shown = pairs
        also_fits = fits(said, shown).fill_diagonal_(False)
        return model(pixels, words).masked_fill(also_fits, -math.inf)  # type: ignore[no-any-return]

    def loss(model: nn.Module, pairs: Batch) -> torch.Tensor:
        return _contrastive(scores(model, pairs))

    def evaluate(model: nn.Module, half: str) -> dict[str, float]:
        numbers = torch.arange(PAIRS, PAIRS + HELD_OUT).view(2, -1)[HALVES.index(half)]
        groups = numbers[: len(numbers) // batch * batch].view(-1, batch)
        found = [scores(model, tuple(beside(model, *part(group)))) for group in groups]
        right = [(each.argmax(1).cpu() == torch.arange(batch)).float().mean() for each in found]
        return {
            "loss": torch.stack([_contrastive(each) for each in found]).mean().item(),
            "right_caption": torch.stack(right).mean().item(),
        }

    return Task(model=TwoEncoders(), train_batches=epochs(part, PAIRS, batch), loss=loss, evaluate=evaluate)


def _contrastive(scores: torch.Tensor) -> torch.Tensor:
    """CLIP's loss of scores, (pictures, captions); each picture's own caption has its number."""
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
