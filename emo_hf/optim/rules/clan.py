"""The rule of EmoClan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.rules.fact import FactAdamVectors
from emo_hf.optim.rules.lynx import Lynx, RelativeDecay
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.rule import Rule, whole_and_finite
from emo_hf.optim.state_keys import COLUMN_RMS, COMPENSATION, EXP_AVG_SQ, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation, State
from emo_hf.reading import Option, pair_below_one

LOUD = 0.6  # |σ| above: Lynx
FELT = 0.3  # |σ| above: Fact; up to here: Navi


class _Branch:
    """One of the three rules, with a state of its own under prefixed names."""

    def __init__(self, prefix: str, rule: type[Rule]) -> None:
        self._prefix, self._rule = prefix, rule
        self.implementations = whole_and_finite(rule.implementations) if rule.elementwise else rule.implementations

    def new_state(self, param: torch.Tensor) -> State:
        state = self._rule.new_state(self._rule.__new__(self._rule), param)
        return {self._prefix + key: value for key, value in state.items()}

    def own_part(self, state: State) -> State:
        part = {key.removeprefix(self._prefix): value for key, value in state.items() if key.startswith(self._prefix)}
        return part | {key: state[key] for key in (COMPENSATION,) if key in state}


_LYNX, _FACT, _NAVI = _Branch("lynx_", Lynx), _Branch("fact_", FactAdamVectors), _Branch("navi_", Navi)


def _branch(scalar: float) -> _Branch:
    return _LYNX if abs(scalar) > LOUD else _FACT if abs(scalar) > FELT else _NAVI


def _choosing(name: str) -> Implementation:
    def run(bucket: Bucket, h: Hyperparameters) -> None:
        branch = _branch(h.scalar)
        own = Bucket(bucket.params, bucket.grads, [branch.own_part(state) for state in bucket.states])
        branch.implementations[name](own, h)

    return run


class Clan(RelativeDecay):
    """One of three rules for all parameters, by |σ|.

    |σ| > 0.6            Lynx, with `lynx_betas` and its decay
    0.3 < |σ| ≤ 0.6      Fact of v3.0
    |σ| ≤ 0.3            Navi

    Each has a state of its own, which stands still while another is chosen. All of it is made at the first step, so
    that checkpoints always hold the same tensors. Second moments are float32 for bfloat16 and float16 parameters too.
    """

    implementations = {
        name: _choosing(name) for name in ("single", "foreach", "native", "triton", "sharded", "finite")
    }
    elementwise = False
    reads_scalar = True
    float32_state = frozenset({f"fact_{ROW_RMS}", f"fact_{COLUMN_RMS}", f"fact_{EXP_AVG_SQ}", f"navi_{EXP_AVG_SQ}"})
    options = {
        **RelativeDecay.options,
        "lynx_betas": Option((0.9, 0.99), pair_below_one, "β1 and β2 while it moves parameters as Lynx does"),
    }

    def new_state(self, param: torch.Tensor) -> State:
        return _LYNX.new_state(param) | _FACT.new_state(param) | _NAVI.new_state(param)

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        if _branch(decision.scalar) is not _LYNX:
            return Hyperparameters.of(group, decision)
        beta1, beta2 = group["lynx_betas"]
        return replace(super().hyperparameters(group, decision), beta1=beta1, beta2=beta2)
