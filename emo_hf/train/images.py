"""Images without a network: the idx files of MNIST and its kin, and digits that are drawn on the spot."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from numpy.typing import NDArray

from emo_hf.train.errors import RecipeError

_UNSIGNED_BYTES = 8
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmss10",
    "cmtt10",
)  # fmt: skip
_HELD_OUT_FONTS = ("DejaVuSansMono-Oblique", "STIXGeneralBolIta", "cmb10")


def read_idx(path: Path) -> Dataset:
    """`image` and `label` of an idx file of images, the labels from the file beside it.

    Their names differ as in `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`.

    Raises:
        RecipeError: if one of them is missing, or is none, or they do not have the same number of entries.
    """
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.is_file():
        raise RecipeError(
            f"the labels of {path.name!r} are looked for in {beside.name!r} beside it, which is not there"
        )
    images, labels = _array(path, 3), _array(beside, 1)
    if len(images) != len(labels):
        raise RecipeError(f"{path.name!r} has {len(images)} images, and {beside.name!r} has {len(labels)} labels")
    from PIL.Image import fromarray

    return Dataset.from_dict(
        {"image": [fromarray(image) for image in images], "label": labels.tolist()},
        features=Features({"image": Image(), "label": Value("int64")}),
    )


def _array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """idx: two zeros, the type, the number of dimensions, each size as a big-endian int32, then the entries."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)):
        raise RecipeError(f"{path.name!r} is not an idx file of unsigned bytes with {dimensions} dimensions")
    shape = [int(size) for size in np.frombuffer(data, ">i4", dimensions, 4)]
    if min(shape) < 0 or math.prod(shape) != len(data) - start:
        raise RecipeError(
            f"{path.name!r} is cut short: it should hold {shape}, and {len(data) - start} bytes are there"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def drawn_digits(train: int = 2000, validation: int = 500) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`image` and `label`: digits of matplotlib's fonts, 28 × 28, turned, shifted, noisy; validation in other fonts.

    Args:
        train, validation: numbers of images.
    """
    return _draw(train, _FONTS, seed=0), _draw(validation, _HELD_OUT_FONTS, seed=1)


def _draw(count: int, fonts: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
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
