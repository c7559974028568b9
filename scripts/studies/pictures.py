"""Pictures of two coloured digits, and captions that say what they show, in words that vary."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from study_data import generator
from torch.nn import functional

SIDE = 32  # of a picture, in pixels
HALF = SIDE // 2
JITTER = 7  # pixels that a digit may lie aside from the middle line
COLOURS = (
    (("red", "scarlet"), (1.0, 0.2, 0.2)),
    (("green", "lime"), (0.2, 0.9, 0.2)),
    (("blue", "azure"), (0.3, 0.4, 1.0)),
)
SIZES = ((("small", "little", "tiny"), 10), (("big", "large"), 16))  # with the pixels of a digit's side
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple((name, str(digit)) for digit, name in enumerate(NAMES))
RELATIONS = (  # side by side, or one above the other: of the first digit to the second, of the second to the first
    (("left of", "to the left of", "before"), ("right of", "to the right of", "after")),
    (("above", "over", "on top of"), ("below", "under", "beneath")),
)
SAID = 0.5  # how likely a caption is to say a colour, or a size; digits and relation are always said
UNSAID = -1
LONGEST = 12  # words: the tiny red seven to the left of the large lime 3
_PHRASES = (*(names for names, _ in (*COLOURS, *SIZES)), *DIGITS, *(each for both in RELATIONS for each in both))
WORDS = sorted({"the"} | {word for phrases in _PHRASES for phrase in phrases for word in phrase.split()})


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures, and a caption of each.

    Attributes:
        pixels: (pairs, 3, 32, 32), bytes.
        captions: a text each.
        shown: (pairs, 7): digit, digit, colour, colour, size, size of the first and of the second, and whether the
            second is below the first and not to the right of it.
        said: what the caption says of these, (pairs, 7); −1 where it says nothing.
    """

    pixels: torch.Tensor
    captions: list[str]
    shown: torch.Tensor
    said: torch.Tensor


def compose(images: torch.Tensor, labels: torch.Tensor, *, count: int, seed: int, noise: float = 0.0) -> Pairs:
    """Pairs of a picture and a caption, drawn at random.

    Args:
        images: of digits, (digits, 28, 28), bytes.
        labels: which digits they are, (digits,).
        count: how many pairs.
        seed: of all that is drawn.
        noise: share of the captions that are of a picture that is not there.
    """
    drawn = generator(seed)
    chosen, others = torch.randint(len(labels), (2, count, 2), generator=drawn)
    shown, other = (_attributes(labels[digits], drawn) for digits in (chosen, others))
    said = torch.where(torch.rand(count, 1, generator=drawn) < noise, other, shown)
    said[:, 2:6][torch.rand(count, 4, generator=drawn) >= SAID] = UNSAID
    words = random.Random(seed)
    captions = [_caption(row, words) for row in said.tolist()]
    return Pairs(pixels=_painted(images[chosen], shown, drawn), captions=captions, shown=shown, said=said)


def fits(said: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Whether a picture is as a caption says, (pictures, captions), from (captions, 7) and (pictures, 7)."""
    return ((said == shown[:, None]) | (said == UNSAID)).all(-1)


def word_numbers(captions: list[str]) -> torch.Tensor:
    """Captions as numbers of their words, 1 to len(WORDS), then 0, (captions, 12)."""
    numbers = {word: number for number, word in enumerate(WORDS, 1)}
    rows = [[numbers[word] for word in caption.split()] for caption in captions]
    return torch.tensor([row + [0] * (LONGEST - len(row)) for row in rows])


def _attributes(digits: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
    """Digits, (pairs, 2), with colours, sizes and a relation that are drawn, (pairs, 7)."""
    kinds = ((len(COLOURS), 2), (len(SIZES), 2), (len(RELATIONS), 1))
    return torch.cat([digits, *(torch.randint(n, (len(digits), each), generator=drawn) for n, each in kinds)], 1)


def _caption(said: list[int], words: random.Random) -> str:
    first, second = (_noun(said[which:6:2], words) for which in (0, 1))
    forwards, backwards = RELATIONS[said[6]]
    if words.random() < 0.5:
        return f"{first} {words.choice(forwards)} {second}"
    return f"{second} {words.choice(backwards)} {first}"


def _noun(said: list[int], words: random.Random) -> str:
    digit, colour, size = said
    named = ["the"]
    if size != UNSAID:
        named.append(words.choice(SIZES[size][0]))
    if colour != UNSAID:
        named.append(words.choice(COLOURS[colour][0]))
    return " ".join([*named, words.choice(DIGITS[digit])])


def _painted(digits: torch.Tensor, shown: torch.Tensor, drawn: torch.Generator) -> torch.Tensor:
    """Two digits, (pairs, 2, 28, 28), in the two halves of a picture, (pairs, 3, 32, 32)."""
    inner = digits[:, :, 4:24, 4:24].float()  # the rest is margin
    tints = torch.tensor([tint for _, tint in COLOURS])[shown[:, 2:4]][..., None, None]
    scaled = [(functional.adaptive_avg_pool2d(inner, side).unsqueeze(2) * tints).byte() for _, side in SIZES]
    places = torch.rand(len(digits), 2, 2, generator=drawn).tolist()
    pictures = torch.zeros(len(digits), 3, SIDE, SIDE, dtype=torch.uint8)
    for number, (*_, size, other_size, below) in enumerate(shown.tolist()):
        for which, kind in enumerate((size, other_size)):
            side, (along, across) = SIZES[kind][1], places[number][which]
            start = which * HALF + int(along * (HALF - side + 1))
            aside = (SIDE - side - JITTER + 1) // 2 + int(across * JITTER)
            top, left = (start, aside) if below else (aside, start)
            pictures[number, :, top : top + side, left : left + side] = scaled[kind][number, which]
    return pictures
