"""From one loss per step to one decision per step. Floats only: nothing in here imports torch or knows of parameters.

`law.py` says what a law is, and each law has a file of its own; `decision.py` says what a law decides, `words.py` how
that is put, `saved.py` how its state is read. A new law is one file, and one line here.
"""

from __future__ import annotations

from typing import Any

from emo_hf.laws.decision import Decision, EmotionView, Note, ShadowMix
from emo_hf.laws.law import NONE, Law, Zone
from emo_hf.laws.robust import Robust
from emo_hf.laws.settle import Settle
from emo_hf.laws.v3_0 import V3_0
from emo_hf.laws.v3_1 import V3_1
from emo_hf.laws.v3_6 import V3_6
from emo_hf.laws.v3_9 import V3_9
from emo_hf.reading import Option, one_of

__all__ = ["LAWS", "Decision", "EmotionView", "Law", "Note", "ShadowMix", "Zone", "law_names", "make_law", "read_law"]

LAWS: dict[str, type[Law]] = {law.name: law for law in (V3_0, V3_1, Robust, V3_6, V3_9, Settle)}
"""The laws by the name that `emo_law` takes."""


def law_names() -> tuple[str, ...]:
    """All that `emo_law` takes: the laws, and `none`, with which a law goes on to log and changes nothing."""
    return (*LAWS, NONE)


def read_law(name: Any) -> str:
    """A name for `emo_law`, checked as the readers of options do."""
    return one_of(*law_names())(name)


def law_options() -> dict[str, Option]:
    """The options of all laws, by name."""
    return {name: option for law in LAWS.values() for name, option in law.options.items()}


def make_law(name: str, own: str, options: dict[str, Any]) -> Law:
    """A law by its name.

    Args:
        name: as `emo_law` takes it.
        own: the law that the optimizer has by itself, which goes on being logged under `none`.
        options: options of the law.

    Raises:
        ValueError: for a name that no law has, or an unacceptable option.
        TypeError: for an option that the law does not have.
    """
    if name not in law_names():
        raise ValueError(f"emo_law must be one of {', '.join(law_names())}, got {name!r}")
    law = LAWS[own if name == NONE else name](**options)
    if name == NONE:
        law.acts = False
        law.neutral_step()  # its factor is 1 before the first step too
    return law
