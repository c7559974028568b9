"""The shadow: a slow copy of each parameter, kept with `use_shadow=True`."""

from __future__ import annotations

import torch

from emo_hf.laws.decision import ShadowMix
from emo_hf.optim.sharding import local_elements
from emo_hf.optim.state_keys import SHADOW
from emo_hf.optim.update import State


def mix_shadows(params: list[torch.Tensor], states: list[State], mix: ShadowMix) -> None:
    """p ← keep·p + pull·shadow, then shadow ← shadow + follow·(p − shadow), before the parameters are updated.

    On first use the shadow is a clone of its parameter.
    """
    for param, state in zip(params, states, strict=True):
        shadow = state.get(SHADOW)
        if shadow is None:
            shadow = make_shadow(param, state)
        own, own_shadow = local_elements(param), local_elements(shadow)
        if (mix.keep, mix.pull) != (1.0, 0.0):
            own.mul_(mix.keep).add_(own_shadow, alpha=mix.pull)
        if mix.follow != 0.0:
            own_shadow.lerp_(own, mix.follow)


def make_shadow(param: torch.Tensor, state: State) -> torch.Tensor:
    """Put a clone of a parameter into its state."""
    state[SHADOW] = param.detach().clone(memory_format=torch.preserve_format)
    return state[SHADOW]
