"""RuleOptimizer: which of an update rule's implementations moves which parameters, and with what state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.emotion.v3_1 import ShadowMix
from emo_hf.optim.kernels.launch import works_for
from emo_hf.optim.rules.rule import Implementation, State, StepSize, by_device_and_dtype, on_own_elements
from emo_hf.optim.tensors.chunking import ascending
from emo_hf.optim.tensors.dtensor import is_sharded
from emo_hf.optim.tensors.low_precision import LOW_PRECISION, compensated, in_float32
from emo_hf.optim.tensors.relocation import follow
from emo_hf.optim.tensors.shadow import mix_shadows
from emo_hf.optim.validation import IMPLEMENTATION_OPTIONS


class RuleOptimizer(Optimizer):
    """An update rule at work on parameter groups.

    Subclasses declare `implementations` (name → function that moves tensors), `preference` (device type →
    their names, the best first; "single" where none is left) and `new_state`. A rule that is not elementwise has
    another function, `sharded`, for DTensors; an elementwise one moves the elements that lie on this rank.
    """

    implementations: ClassVar[dict[str, Implementation]]
    preference: ClassVar[dict[str, tuple[str, ...]]]
    sharded: ClassVar[Implementation | None] = None

    def new_state(self, param: torch.Tensor) -> State:
        """The state of a parameter before its first step."""
        raise NotImplementedError

    def _update_group(self, group: dict[str, Any], size: StepSize, shadow: ShadowMix) -> None:
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
            follow(bucket, own_states, group["compensate"])
            if group["use_shadow"]:
                mix_shadows(bucket, own_states, shadow)
            gradients = [param.grad for param in bucket if param.grad is not None]
            update = self._update_for(group, bucket[0])
            update(bucket, gradients, own_states, size.representable_in(bucket[0].dtype))

    def _first_state(self, group: dict[str, Any], param: torch.Tensor) -> State:
        if param.is_complex():
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters: use torch.view_as_real")
        state = self.new_state(param)
        return compensated(state, param) if group["compensate"] and param.dtype in LOW_PRECISION else state

    def _update_for(self, group: dict[str, Any], param: torch.Tensor) -> Implementation:
        """What moves parameters of the device, dtype and placement of this one."""
        elementwise = type(self).sharded is None
        sharded = is_sharded(param)
        rule_of_shards = type(self).sharded if sharded else None
        update = rule_of_shards or self._implementation(group, param)
        computes_in_float32 = update is self.implementations.get("fused")
        if param.dtype in LOW_PRECISION and (group["compensate"] or not computes_in_float32):
            update = in_float32(update, elementwise=elementwise, on_cpu=param.is_cpu)
        if group["maximize"]:
            update = ascending(update, elementwise=elementwise)
        if sharded and rule_of_shards is None:
            update = on_own_elements(update)
        return update

    def _implementation(self, group: dict[str, Any], param: torch.Tensor) -> Implementation:
        """What the group's options choose; as in torch, None leaves the choice to us."""
        chosen = next((name for name in IMPLEMENTATION_OPTIONS if group[name]), None)
        if chosen is None and not (group["foreach"] is False and group["fused"] is False):
            allowed = [name for name in self.preference.get(param.device.type, ()) if group[name] is None]
            if "fused" in allowed and param.dtype in LOW_PRECISION and not group["compensate"]:
                chosen = "fused"  # the one that needs no float32 copies
            else:
                chosen = next((name for name in allowed if name != "compile" or works_for(param)), None)
        elif chosen == "compile" and param.device.type != "cpu":
            raise RuntimeError(
                f"compile=True: the kernels work in main memory, and parameters are on {param.device}: "
                "leave compile=None"
            )
        return self.implementations[chosen or "single"]
