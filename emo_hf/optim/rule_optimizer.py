"""RuleOptimizer: which of an update rule's implementations moves which parameters, and with what state."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.emotion.decision import ShadowMix
from emo_hf.optim.kernels.launch import works_for
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.tensors.chunking import ascending
from emo_hf.optim.tensors.dispatch import by_device_and_dtype, on_own_elements
from emo_hf.optim.tensors.dtensor import is_sharded
from emo_hf.optim.tensors.low_precision import LOW_PRECISION, compensated, in_float32
from emo_hf.optim.tensors.relocation import follow_parameters
from emo_hf.optim.tensors.shadow import make_shadow, mix_shadows
from emo_hf.optim.update import Hyperparameters, Implementation, State
from emo_hf.optim.validation import IMPLEMENTATION_OPTIONS


class RuleOptimizer(Optimizer):
    """An update rule at work on parameter groups."""

    _rule: Rule

    def _update_group(self, group: dict[str, Any], h: Hyperparameters, shadow: ShadowMix | None) -> None:
        params, states = [], []
        for param in group["params"]:  # in one pass: it costs as much as the arithmetic where tensors are small
            gradient = param.grad
            if gradient is None or param.numel() == 0:
                continue
            if gradient.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients: use sparse=False in the embedding"
                )
            state = self.state[param]
            if not state:
                state.update(self._first_state(group, param))
            params.append(param)
            states.append(state)
        for bucket in by_device_and_dtype(params):
            own_states = states if bucket is params else [self.state[param] for param in bucket]
            follow_parameters(bucket, own_states, group["compensate"], self._rule.float32_state)
            if group["use_shadow"] and shadow is not None:
                mix_shadows(bucket, own_states, shadow)
            gradients = [param.grad for param in bucket if param.grad is not None]
            update = self._update_for(group, bucket[0])
            update(bucket, gradients, own_states, h.representable_in(bucket[0].dtype))

    def _create_state(self) -> None:
        """What a first step leaves in `state`, without the step: some rules would not leave it at its beginning."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.numel() > 0 and not self.state[param]:
                    state = self.state[param]
                    state.update(self._first_state(group, param))
                    if group["use_shadow"]:
                        make_shadow(param, state)

    def _first_state(self, group: dict[str, Any], param: torch.Tensor) -> State:
        if param.is_complex():
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters: use torch.view_as_real")
        state = self._rule.new_state(param)
        if param.dtype not in LOW_PRECISION:
            return state
        state = {key: value.float() if key in self._rule.float32_state else value for key, value in state.items()}
        return compensated(state, param) if group["compensate"] else state

    def _update_for(self, group: dict[str, Any], param: torch.Tensor) -> Implementation:
        """What moves parameters of the device, dtype and placement of this one."""
        rule = self._rule
        sharded = is_sharded(param)
        rule_of_shards = rule.implementations.get("sharded") if sharded else None
        update = rule_of_shards or self._implementation(group, param)
        computes_in_float32 = update is rule.implementations.get("fused")
        if param.dtype in LOW_PRECISION and (group["compensate"] or not computes_in_float32):
            update = in_float32(update, elementwise=rule.elementwise, on_cpu=param.is_cpu)
        if group["maximize"]:
            update = ascending(update, elementwise=rule.elementwise)
        if sharded and rule_of_shards is None:
            update = on_own_elements(update)
        return update

    def _implementation(self, group: dict[str, Any], param: torch.Tensor) -> Implementation:
        """What the group's options choose; as in torch, None leaves the choice to us."""
        rule = self._rule
        chosen = next((name for name in IMPLEMENTATION_OPTIONS if group[name]), None)
        if chosen is None and not (group["foreach"] is False and group["fused"] is False):
            allowed = [name for name in rule.preference.get(param.device.type, ()) if group[name] is None]
            if "fused" in allowed and param.dtype in LOW_PRECISION and not group["compensate"]:
                chosen = "fused"  # the one that needs no float32 copies
            else:
                chosen = next((name for name in allowed if name != "native" or works_for(param)), None)
        elif chosen == "native" and param.device.type != "cpu":
            raise RuntimeError(
                f"native=True: the kernels work in main memory, and parameters are on {param.device}: "
                "leave native=None"
            )
        return rule.implementations[chosen or "single"]
