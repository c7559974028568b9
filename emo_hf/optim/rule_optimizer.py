"""RuleOptimizer: which of an update rule's implementations moves which parameters, and with what state."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import ShadowMix
from emo_hf.optim.kernels.gpu.available import works_for as gpu_works_for
from emo_hf.optim.kernels.launch import works_for
from emo_hf.optim.options import IMPLEMENTATION_OPTIONS
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.tensors import blocks
from emo_hf.optim.tensors.chunking import ascending
from emo_hf.optim.tensors.dispatch import by_device_and_dtype, kept_alike, on_own_elements
from emo_hf.optim.tensors.dtensor import is_sharded
from emo_hf.optim.tensors.eight_bits import EIGHT_BITS, is_eight_bit
from emo_hf.optim.tensors.left_out import LEAVE_OUT, leaving_out, masked
from emo_hf.optim.tensors.low_precision import LOW_PRECISION, compensated, in_eight_bits, in_float32
from emo_hf.optim.tensors.relocation import follow_parameters
from emo_hf.optim.tensors.shadow import make_shadow, mix_shadows
from emo_hf.optim.update import Hyperparameters, Implementation, State

logger = logging.getLogger(__name__)


class RuleOptimizer(Optimizer):
    """An update rule at work on parameter groups."""

    _rule: Rule
    _has_told_of_floats = False

    def _update_group(
        self, group: dict[str, Any], h: Hyperparameters, shadow: ShadowMix | None, some: list[Any] | None = None
    ) -> None:
        """Move the parameters of a group that have a gradient, all of them or `some`."""
        params, states = [], []
        # In one pass: it costs as much as the arithmetic where tensors are small.
        for param in group["params"] if some is None else some:
            gradient = param.grad
            if gradient is None or param.numel() == 0:
                continue
            if gradient.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients: use sparse=False in the embedding"
                )
            state = self.state[param]
            if not state:
                self._begin_state(group, param)
            params.append(param)
            states.append(state)
        for bucket in by_device_and_dtype(params):
            own_states = states if bucket is params else [self.state[param] for param in bucket]
            wide = bool(group["compensate"] or group["state"])
            follow_parameters(bucket, own_states, wide, self._rule.float32_state)
            if group["use_shadow"] and shadow is not None:
                mix_shadows(bucket, own_states, shadow)
            gradients = [param.grad for param in bucket if param.grad is not None]
            numbers = h.representable_in(bucket[0].dtype)
            parts = [(bucket, gradients, own_states)]
            for ps, gs, ss in kept_alike(*parts[0]) if group["state"] else parts:
                self._update_for(group, ps[0], ss[0])(ps, gs, ss, numbers)

    def _create_state(self) -> None:
        """What a first step leaves in `state`, without the step: some rules would not leave it at its beginning."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.numel() > 0 and not self.state[param]:
                    self._begin_state(group, param)
                    if group["use_shadow"]:
                        make_shadow(param, self.state[param])

    def _begin_state(self, group: dict[str, Any], param: torch.Tensor) -> None:
        self.state[param].update(self._first_state(group, param))
        if group["state"] == EIGHT_BITS and is_sharded(param) and not self._has_told_of_floats:
            self._has_told_of_floats = True
            asked = [p for some in self.param_groups if some["state"] == EIGHT_BITS for p in some["params"]]
            said = blocks.left_in_floats(asked)
            if said and dist.get_rank() == 0:
                logger.warning("%s: %s", type(self).__name__, said)

    def _first_state(self, group: dict[str, Any], param: torch.Tensor) -> State:
        if param.is_complex():
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters: use torch.view_as_real")
        if group["compensate"] == EIGHT_BITS and param.dtype is torch.float16:
            raise RuntimeError("compensate='8bit' is for bfloat16, and a parameter is float16: take compensate=True")
        state = self._rule.new_state(param)
        low, eight_bits = param.dtype in LOW_PRECISION, group["state"] == EIGHT_BITS
        if low:
            wide = state if eight_bits else self._rule.float32_state
            state = {key: value.float() if key in wide else value for key, value in state.items()}
        if low and group["compensate"]:
            state = compensated(state, param, group["compensate"])
        if eight_bits and blocks.fit(param):
            state = in_eight_bits(state, self._rule.eight_bit_state)
        return state

    def _update_for(self, group: dict[str, Any], param: torch.Tensor, state: State) -> Implementation:
        """What moves parameters of the device, dtype and placement of this one, and whose state is kept as its is."""
        rule = self._rule
        sharded = is_sharded(param)
        rule_of_shards = rule.implementations.get("sharded") if sharded else None
        update = rule_of_shards or self._implementation(group, param)
        is_native, is_triton, is_fused = (
            update is rule.implementations.get(name) for name in ("native", "triton", "fused")
        )
        if group["nonfinite"] == LEAVE_OUT and not (is_native or is_triton):
            careful = rule.implementations.get("finite") if not sharded else None
            update = leaving_out(update, careful) if careful else masked(update)
        eight_bits = any(map(is_eight_bit, state.values()))
        takes_fewer = (
            (is_native and rule.native_in_any_format)
            or is_triton
            or (is_fused and not (group["compensate"] or group["state"]))
        )
        if (param.dtype in LOW_PRECISION or eight_bits) and not takes_fewer:
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
            preferred = [name for name in rule.preference.get(param.device.type, ()) if name in rule.implementations]
            allowed = [name for name in preferred if group["native" if name == "triton" else name] is None]
            works = {"native": works_for, "triton": gpu_works_for}
            chosen = next((name for name in allowed if name not in works or works[name](param)), None)
        elif chosen == "native" and param.device.type != "cpu":
            if not ("triton" in rule.implementations and gpu_works_for(param)):
                raise RuntimeError(
                    "native=True: there are kernels for main memory, and where Triton works for float32, bfloat16 and "
                    f"float16 on a GPU, but {param.dtype} parameters are on {param.device}: leave native=None"
                )
            chosen = "triton"
        return rule.implementations[chosen or "single"]
