"""The shadow: a slow copy of each parameter, kept with `use_shadow=True`."""

from __future__ import annotations

import torch

from emo_hf.emotion.decision import ShadowMix
from emo_hf.optim.state_keys import SHADOW
from emo_hf.optim.update import State


def mix_shadows(params: list[torch.Tensor], states: list[State], mix: ShadowMix) -> None:
    """p ← keep·p + pull·shadow, then shadow ← shadow + follow·(p − shadow), before the parameters are updated.

    On first use the shadow is a clone of its parameter.
    """
    for param, state in zip(params, states, strict=True):
        shadow = state.get(SHADOW)
        if shadow is None:
            shadow = state[SHADOW] = param.detach().clone(memory_format=torch.preserve_format)
        if (mix.keep, mix.pull) != (1.0, 0.0):
            param.mul_(mix.keep).add_(shadow, alpha=mix.pull)
        if mix.follow != 0.0:
            shadow.lerp_(param, mix.follow)
