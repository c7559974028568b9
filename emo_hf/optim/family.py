"""The family: one statement an optimizer. Whatever lists optimizers (registry, help, tests, benchmarks) reads it here.

A new optimizer is a rule in `rules/` and a statement below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emo_hf.optim.optimizer import FAMILY as FAMILY
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.optim.rules.clan import Clan
from emo_hf.optim.rules.fact import Fact, FactAdamVectors
from emo_hf.optim.rules.lynx import Lynx, LynxRelativeDecay
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.neco import Neco
from emo_hf.optim.rules.sign import Sign
from emo_hf.optim.rules.tion import Tion
from emo_hf.optim.rules.void import Void
from emo_hf.optim.rules.zeal import Zeal
from emo_hf.optim.version import Version

LION_BETAS = (0.9, 0.99)
LATER_BETAS = (0.9, 0.995)


class EmoNavi(
    EmoOptimizer,
    versions=(
        Version(name="v3.1", rule=Navi, law="v3.1"),
        Version(name="v3.0", rule=Navi, law="v3.0"),
        Version(name="v3.6", rule=Navi, law="v3.6", betas=LATER_BETAS),
    ),
):
    """Adam without bias correction, its step scaled by the emotion. Two tensors of state per parameter.

    Source: EmoNavi by muooon.
    """


class EmoFact(
    EmoOptimizer,
    versions=(
        Version(name="v3.1", rule=Fact, law="v3.1"),
        Version(name="v3.0", rule=FactAdamVectors, law="v3.0"),
        Version(name="v3.6", rule=Sign, law="v3.6", betas=LATER_BETAS, law_options={"stop_scalar": "sigma"}),
    ),
):
    """Gradients divided by factored row and column sizes (v3.6: their signs), the step scaled by the emotion.

    The lightest of the three that there are in v3.1: the state of a matrix is one row and one column.

    Source: EmoFact by muooon.
    """


class EmoLynx(
    EmoOptimizer,
    versions=(
        Version(name="v3.1", rule=Lynx, law="v3.1"),
        Version(name="v3.0", rule=LynxRelativeDecay, law="v3.0", betas=LION_BETAS),
        Version(name="v3.6", rule=Lynx, law="v3.6", betas=LATER_BETAS, law_options={"stop_scalar": "sigma"}),
    ),
):
    """Sign steps as Lion takes them, scaled by the emotion. One tensor of state per parameter.

    Source: EmoLynx by muooon.
    """


class EmoClan(EmoOptimizer, versions=(Version(name="v3.0", rule=Clan, law="v3.0"),)):
    """Navi, Fact or Lynx, as the emotion chooses.

    Source: EmoClan by muooon.
    """


class EmoZeal(EmoOptimizer, versions=(Version(name="v3.0", rule=Zeal, law="v3.0"),)):
    """EmoFact with an extra step while the loss changes.

    Source: EmoZeal by muooon.
    """


class EmoNeco(EmoOptimizer, versions=(Version(name="v3.0", rule=Neco, law="v3.0", betas=LION_BETAS),)):
    """Cautious sign steps, scaled by the emotion.

    Source: EmoNeco by muooon.
    """


class EmoSens(EmoOptimizer, versions=(Version(name="v3.9", rule=Navi, law="v3.9", lr=1.0, betas=LATER_BETAS),)):
    """Adam without bias correction, at a learning rate that is made from the loss.

    Source: EmoSens by muooon.
    """


class EmoAiry(EmoOptimizer, versions=(Version(name="v3.9", rule=Sign, law="v3.9", lr=1.0, betas=LATER_BETAS),)):
    """Steps by the sign of the gradient, at a learning rate that is made from the loss. No state.

    Source: EmoAiry by muooon.
    """


class EmoCats(EmoOptimizer, versions=(Version(name="v3.9", rule=Lynx, law="v3.9", lr=1.0, betas=LATER_BETAS),)):
    """Sign steps as Lion takes them, at a learning rate that is made from the loss.

    Source: EmoCats by muooon.
    """


class EmoTion(EmoOptimizer, versions=(Version(name="v3.9", rule=Tion, law="v3.9", lr=1.0, betas=LATER_BETAS),)):
    """Signs of an average gradient that is the fresher, the more the weights change; the rate is made from the loss.

    Source: EmoTion by muooon.
    """


class EmoVoid(EmoOptimizer, versions=(Version(name="v3.9", rule=Void, law="v3.9", lr=1.0, betas=LATER_BETAS),)):
    """Signs of the gradient, and at first weights that keep their size; the rate is made from the loss. No state.

    Source: EmoVoid by muooon.
    """


_IN_8_BITS = {"state": EIGHT_BITS, "compensate": EIGHT_BITS}

SHORTHANDS: dict[str, tuple[str, dict[str, str]]] = {
    "emonavi_8bit": ("emonavi", _IN_8_BITS),
    "emolynx_8bit": ("emolynx", _IN_8_BITS),
}
"""Further names that `--optim` takes: an optimizer of the family, and options that it then begins with."""


def family_names() -> tuple[str, ...]:
    """Every name that `--optim` takes."""
    return (*FAMILY, *SHORTHANDS)


if not TYPE_CHECKING:  # type checkers read the statements
    __all__ = [cls.__name__ for cls in FAMILY.values()]
