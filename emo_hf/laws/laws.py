"""The laws that an emotion may follow, by the name that `emo_law` takes. A new law is one file here and one line."""

from __future__ import annotations

from typing import Any

from emo_hf.laws.ablation import ABLATION_NAMES, NONE, read_ablation
from emo_hf.laws.law import Law
from emo_hf.laws.robust import Robust
from emo_hf.laws.settle import Settle
from emo_hf.laws.v3_0 import V3_0
from emo_hf.laws.v3_1 import V3_1
from emo_hf.laws.v3_6 import V3_6
from emo_hf.laws.v3_9 import V3_9
from emo_hf.reading import Option

LAWS: dict[str, type[Law]] = {law.name: law for law in (V3_0, V3_1, Robust, V3_6, V3_9, Settle)}


def law_names() -> tuple[str, ...]:
    """All that `emo_law` takes as it stands; `read_law` takes the ablations that have a value too."""
    return (*LAWS, NONE.name)


def read_law(name: Any) -> str:
    """A name for `emo_law`, checked: a law, or an ablation such as `none`, `constant:1.3` or `replay:FILE#RUN`.

    Raises:
        ValueError: saying what is accepted, and nothing else, as the readers of options do.
    """
    if isinstance(name, str) and (name in LAWS or read_ablation(name) is not None):
        return name
    raise ValueError("one of " + ", ".join((*LAWS, *ABLATION_NAMES)))


def law_options() -> dict[str, Option]:
    """The options of all laws, by name."""
    return {name: option for law in LAWS.values() for name, option in law.options.items()}


def make_law(name: str, own: str, options: dict[str, Any]) -> Law:
    """A law by its name.

    Args:
        name: as `emo_law` takes it.
        own: the law that the optimizer has by itself, which is felt under an ablation.
        options: options of the law.

    Raises:
        ValueError: for a name that no law has, or an unacceptable option.
        TypeError: for an option that the law does not have.
    """
    ablation = read_ablation(name)
    if ablation is not None:
        law = LAWS[own](**options)
        law.ablate(ablation.over(law))
        return law
    if name not in LAWS:
        raise ValueError(f"emo_law must be one of {', '.join((*LAWS, *ABLATION_NAMES))}, got {name!r}")
    return LAWS[name](**options)
