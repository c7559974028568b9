"""Data that need no file and no network: docstrings of the standard library, as the tasks need them, and digits.

The training and the validation rows are the same every time with the same Python.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from emo_hf.train.docstrings import Docstring, load_docstrings

Rows = list[dict[str, Any]]
Sides = tuple[Rows, Rows]
Data = Callable[[], Sides]

_QUOTED = re.compile(r"``([^`\n]+)``|`([^`'\n]+)[`']|(?<!\w)'([^'\n]+)'(?!\w)")
_TOKEN = re.compile(r"\w+|[^\w\s]")

load_once = functools.cache(load_docstrings)
"""Reading takes seconds, and one process may train many times."""


def docstrings(make: Callable[[list[Docstring]], Iterable[dict[str, Any]]], *, mask_names: bool = False) -> Data:
    """Both sides of the docstrings, made into rows."""

    def sides() -> Sides:
        train, validation = load_once(mask_names=mask_names)
        return list(make(train)), list(make(validation))

    return sides


def by_package(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    """`text` and `label`: for which package was it written?"""
    return ({"text": example.text, "label": example.label} for example in examples)


def as_prose(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    """`text`, as it was written."""
    return ({"text": example.text} for example in examples)


def with_code(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    """`tokens` and `tags`: paragraphs whose authors put code in quotes; the quotes are gone, the tags say where."""
    for paragraph in (part for example in examples for part in re.split(r"\n\s*\n", example.text)):
        tokens: list[str] = []
        tags: list[str] = []
        for i, piece in enumerate(_QUOTED.split(paragraph)):  # what is between, and the three groups, of which one is
            found = _TOKEN.findall(piece or "")
            tokens += found
            tags += ["O"] * len(found) if i % 4 == 0 else ["B-code", *["I-code"] * (len(found) - 1)] if found else []
        if {"O", "B-code"} <= set(tags):
            yield {"tokens": tokens, "tags": tags}


def begun(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    """`prompt` and `completion`: the package and the first sentence of a docstring, and all that follows."""
    for example in examples:
        first, *rest = re.split(r"\n\s*\n|(?<=[.!?])\s+", example.text.strip(), maxsplit=1)
        if rest and len(rest[0].split()) > 2:
            yield {"prompt": f"{example.label}: {' '.join(first.split())}", "completion": rest[0].strip()}


def preferred(examples: list[Docstring]) -> Iterable[dict[str, Any]]:
    """`prompt`, `chosen`, `rejected`: as `begun`, against what follows in a docstring chosen at random."""
    rows = list(begun(examples))
    others = [row["completion"] for row in rows]
    random.Random(0).shuffle(others)
    for row, other in zip(rows, others, strict=True):
        if other != row["completion"]:
            yield {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}


_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmss10",
    "cmtt10",
)  # fmt: skip
_HELD_OUT_FONTS = ("DejaVuSansMono-Oblique", "STIXGeneralBolIta", "cmb10")


def drawn_digits() -> Sides:
    """`image` and `label`: digits in matplotlib's fonts, turned, shifted, noisy; those held out are in other fonts."""
    return _draw(2000, _FONTS, seed=0), _draw(500, _HELD_OUT_FONTS, seed=1)


def _draw(count: int, fonts: tuple[str, ...], seed: int) -> Rows:
    import matplotlib
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    chooser, noise = random.Random(seed), np.random.default_rng(seed)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rows = []
    for i in range(count):
        font = ImageFont.truetype(str(folder / f"{chooser.choice(fonts)}.ttf"), chooser.randint(18, 26))
        image = Pillow.new("L", (28, 28))
        place = (14 + chooser.uniform(-3, 3), 14 + chooser.uniform(-3, 3))
        ImageDraw.Draw(image).text(place, str(i % 10), fill=chooser.randint(120, 255), font=font, anchor="mm")
        image = image.rotate(chooser.uniform(-20, 20), Pillow.Resampling.BILINEAR)
        grey = np.asarray(image) + noise.normal(0, 20, (28, 28))
        rows.append({"image": Pillow.fromarray(grey.clip(0, 255).astype(np.uint8)), "label": i % 10})
    return rows
