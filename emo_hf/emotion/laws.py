"""The laws that an emotion may follow, by the name that `emo_law` takes. A new law is one file here and one line."""

from __future__ import annotations

from typing import Any

from emo_hf.emotion.ablation import NONE
from emo_hf.emotion.law import Law
from emo_hf.emotion.robust import Robust
from emo_hf.emotion.v3_0 import V3_0
from emo_hf.emotion.v3_1 import V3_1
from emo_hf.emotion.v3_6 import V3_6
from emo_hf.emotion.v3_9 import V3_9
from emo_hf.reading import Option

LAWS: dict[str, type[Law]] = {law.name: law for law in (V3_0, V3_1, Robust, V3_6, V3_9)}


def law_names() -> tuple[str, ...]:
    """All that `emo_law` takes."""
    return (*LAWS, NONE.name)


def law_options() -> dict[str, Option]:
    """The options of all laws, by name."""
    return {name: option for law in LAWS.values() for name, option in law.options.items()}


def make_law(name: str, own: str, options: dict[str, Any]) -> Law:
    """A law by its name.

    Args:
        name: as `emo_law` takes it.
        own: the law that the optimizer has by itself, which is felt under `none`.
        options: options of the law.

    Raises:
        ValueError: for a name that no law has, or an unacceptable option.
        TypeError: for an option that the law does not have.
    """
    if name == NONE.name:
        law = LAWS[own](**options)
        law.ablate(NONE)
        return law
    if name not in LAWS:
        raise ValueError(f"emo_law must be one of {', '.join(law_names())}, got {name!r}")
    return LAWS[name](**options)
