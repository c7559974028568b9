"""Buckets: parameters of one device, dtype, placement and kind of state, and what moves them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from emo_hf.laws.decision import ShadowMix
from emo_hf.optim.kernels.gpu.available import works_for as triton_works_for
from emo_hf.optim.kernels.launch import works_for as kernels_work_for
from emo_hf.optim.left_out import LEAVE_OUT, leaving_out, masked
from emo_hf.optim.options import IMPLEMENTATION_OPTIONS
from emo_hf.optim.pieces import ascending
from emo_hf.optim.precision import blocks
from emo_hf.optim.precision.eight_bits import EIGHT_BITS, SIZES
from emo_hf.optim.precision.low import LOW_PRECISION, first_compensation, in_eight_bits, in_float32
from emo_hf.optim.precision.moved import follow_parameters
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.shadow import make_shadow, mix_shadows
from emo_hf.optim.sharding import is_sharded, on_local_elements
from emo_hf.optim.state_keys import COMPENSATION
from emo_hf.optim.update import PLAIN, Bucket, Hyperparameters, Implementation, State, any_lazy, as_memory_says

OPTIONS_THAT_CHOOSE = (*IMPLEMENTATION_OPTIONS, "maximize", "nonfinite", "compensate", "state")
"""Options of a group on which the choice of what moves its parameters depends."""

logger = logging.getLogger(__name__)

States = MutableMapping[torch.Tensor, Any]
"""The `state` of an optimizer."""


class Buckets:
    """Moves parameters by an update rule: sorts them into buckets, and chooses once for each kind what moves it.

    The kinds hold all that a choice depends on, so that no choice grows old: parameters may be moved, cast, added,
    frozen and exchanged between two steps, and options and states too.

    Args:
        rule: the update rule.
        name: of the optimizer, for messages.
    """

    def __init__(self, rule: Rule, name: str) -> None:
        self._rule = rule
        self._name = name
        self._chosen: dict[tuple[Any, ...], Implementation] = {}  # kind → what moves it
        self._has_told_of_floats = False

    def move(
        self,
        state: States,
        group: dict[str, Any],
        h: Hyperparameters,
        shadow: ShadowMix | None,
        some: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Move the parameters of a group that have a gradient, all of them or `some`.

        Args:
            state: the optimizer's; states that are missing are begun.
            group: the parameter group.
            h: the numbers of the step for it.
            shadow: how the shadows are mixed in, if at all.
            some: parameters of the group; None for all.
        """
        bucket = self._with_gradients(state, group, group["params"] if some is None else some)
        params = bucket.params
        if any_lazy(params):
            bucket.params = list(map(as_memory_says, params))
        self._move(bucket, group, h, shadow)
        for param, moved in zip(params, bucket.params, strict=True) if bucket.params is not params else ():
            if moved is not param:
                param.copy_(moved)

    def _move(self, bucket: Bucket, group: dict[str, Any], h: Hyperparameters, shadow: ShadowMix | None) -> None:
        options = tuple([group[name] for name in OPTIONS_THAT_CHOOSE])
        for of_one_dtype in _by_placement(bucket):
            params, states = of_one_dtype.params, of_one_dtype.states
            follow_parameters(params, states, group, self._rule.float32_state)
            if group["use_shadow"] and shadow is not None:
                mix_shadows(params, states, shadow)
            numbers = h.representable_in(params[0].dtype)
            parts = _by_state(of_one_dtype) if group["state"] else [(False, of_one_dtype)]
            for has_codes, part in parts:
                first = part.params[0]
                kind = (first.device, first.dtype, _is_sharded(first), has_codes, *options)
                if kind not in self._chosen:
                    self._chosen[kind] = self._choose(group, first, has_codes)
                try:
                    self._chosen[kind](part, numbers)
                except KeyError as error:
                    raise RuntimeError(
                        f"{self._name}: the state of a parameter lacks {error} and has {list(part.states[0])}: "
                        "something else, a wrapper perhaps, keeps its own there before the first step. Wrap "
                        "another optimizer instead"
                    ) from error

    def create_states(self, state: States, groups: Iterable[dict[str, Any]]) -> None:
        """Leave in `state` what a first step does, without the step: some rules would move something at any rate."""
        for group in groups:
            bucket = self._with_gradients(state, group, [param for param in group["params"] if not state.get(param)])
            for param, _, of_one in bucket:
                if group["use_shadow"]:
                    make_shadow(param, of_one)

    def first_state(self, group: Mapping[str, Any], param: torch.Tensor) -> State:
        """The state of a parameter before its first step.

        Raises:
            RuntimeError: if there can be none for its dtype.
        """
        if param.is_complex():
            raise RuntimeError(f"{self._name} does not support complex parameters: use torch.view_as_real")
        state = self._rule.new_state(param)
        low, eight_bits = param.dtype in LOW_PRECISION, group["state"] == EIGHT_BITS
        if low:
            wide = state if eight_bits else self._rule.float32_state
            state = {key: value.float() if key in wide else value for key, value in state.items()}
        if low and group["compensate"]:
            state = {key: value.float() for key, value in state.items()}
            state[COMPENSATION] = first_compensation(param, group["compensate"])
        if eight_bits and blocks.fit(param):
            state = in_eight_bits(state, self._rule.eight_bit_state)
        return state

    def implementation(self, group: Mapping[str, Any], param: torch.Tensor) -> str:
        """The name of what the group's options choose for a parameter; as in torch, None leaves the choice to us.

        Raises:
            RuntimeError: if what is asked for does not work for it.
        """
        there = self._rule.implementations
        asked = next((name for name in IMPLEMENTATION_OPTIONS if group[name]), None)
        if asked == "native" and param.device.type != "cpu":
            if not ("triton" in there and triton_works_for(param)):
                raise RuntimeError(
                    "native=True: there are kernels for main memory, and where Triton works for float32, bfloat16 and "
                    f"float16 on a GPU, but {param.dtype} parameters are on {param.device}: leave native=None"
                )
            return "triton"
        if asked is not None:
            return asked
        if group["foreach"] is False and group["fused"] is False:
            return "single"
        works = {"native": kernels_work_for, "triton": triton_works_for}
        for name in self._rule.preference.get(param.device.type, ()):
            is_allowed = name in there and group["native" if name == "triton" else name] is None
            if is_allowed and (name not in works or works[name](param)):
                return name
        return "single"

    def _with_gradients(self, state: States, group: dict[str, Any], params: Sequence[torch.Tensor]) -> Bucket:
        """The parameters that have a gradient, with it and with their states, which begin here."""
        bucket = Bucket()
        for param in params:  # one pass: it costs as much as the arithmetic where tensors are small
            gradient = param.grad
            if gradient is None or param.numel() == 0:
                continue
            if gradient.is_sparse:
                raise RuntimeError(
                    f"{self._name} does not support sparse gradients: use sparse=False in the embedding"
                )
            of_one = state[param]
            if not of_one:
                of_one.update(self.first_state(group, param))
                self._tell_of_floats(group, param)
            bucket.add(param, gradient, of_one)
        if any_lazy(bucket.grads):
            bucket.grads = list(map(as_memory_says, bucket.grads))
        if any_lazy([value for of_one in bucket.states for value in of_one.values()]):
            for of_one in bucket.states:
                of_one.update({key: as_memory_says(value) for key, value in of_one.items()})
        return bucket

    def _tell_of_floats(self, group: Mapping[str, Any], param: torch.Tensor) -> None:
        if group["state"] == EIGHT_BITS and is_sharded(param) and not self._has_told_of_floats:
            said = blocks.left_in_floats(group["params"])
            self._has_told_of_floats = said is not None
            if said and dist.get_rank() == 0:
                logger.warning("%s: %s", self._name, said)

    def _choose(self, group: Mapping[str, Any], param: torch.Tensor, has_codes: bool) -> Implementation:
        """What moves parameters of the device, dtype, placement and kind of state of this one."""
        rule, sharded = self._rule, is_sharded(param)
        name = self.implementation(group, param)
        whole_shards = sharded and "sharded" in rule.implementations  # the rule sees to what other ranks hold
        name = "sharded" if whole_shards else name
        takes_low_precision = (
            (name == "native" and rule.native_in_any_format)
            or name == "triton"
            or (name == "fused" and not (group["compensate"] or group["state"]))
        )
        widened = (param.dtype in LOW_PRECISION or has_codes) and not takes_low_precision

        def prepared(update: Implementation) -> Implementation:
            if widened:
                update = in_float32(update, elementwise=rule.elementwise, on_cpu=param.is_cpu)
            return ascending(update, elementwise=rule.elementwise) if group["maximize"] else update

        update = rule.implementations[name]
        if group["nonfinite"] != LEAVE_OUT or name in ("native", "triton"):  # these see to it themselves
            moving = prepared(update)
        elif whole_shards:
            moving = prepared(masked(update))
        else:
            careful = rule.implementations.get("finite") or masked(update, elementwise=rule.elementwise)
            moving = leaving_out(prepared(update), prepared(careful))
        return on_local_elements(moving) if sharded and not whole_shards else moving


def _is_sharded(param: torch.Tensor) -> bool:
    return type(param) not in PLAIN and is_sharded(param)


def _by_placement(bucket: Bucket) -> list[Bucket]:
    """A bucket's parameters in buckets of one device and one dtype each, sharded ones apart, in their order."""
    params = bucket.params
    if not params:
        return []
    device, dtype = params[0].device, params[0].dtype
    if all([type(p) in PLAIN and p.dtype is dtype and p.device == device for p in params]):
        return [bucket]  # as it is nearly always
    return list(_sorted(bucket, [(p.device, p.dtype, _is_sharded(p)) for p in params]).values())


def _by_state(bucket: Bucket) -> list[tuple[bool, Bucket]]:
    """Whether state is kept in 8 bits, and the parameters of which it is so."""
    return list(_sorted(bucket, [any([key.endswith(SIZES) for key in state]) for state in bucket.states]).items())


def _sorted(bucket: Bucket, kinds: list[Any]) -> dict[Any, Bucket]:
    buckets: dict[Any, Bucket] = {}
    for kind, of_one in zip(kinds, bucket, strict=True):
        buckets.setdefault(kind, Bucket()).add(*of_one)
    return buckets
