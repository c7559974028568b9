"""What an update rule is. A rule is a subclass of `Rule` in a file of its own, its formula beside the code, and a line
in `family.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim.kernels import launch
from emo_hf.optim.kernels.gpu import launch as gpu
from emo_hf.optim.left_out import masked
from emo_hf.optim.pieces import bounded, in_pieces
from emo_hf.optim.precision.low import in_float32_if_kept_in_less
from emo_hf.optim.sharding import local_elements, on_local_elements, whole_norms
from emo_hf.optim.update import Hyperparameters, Implementation, State
from emo_hf.reading import Option


class Rule:
    """An update rule at work in one optimizer.

    Class attributes of a rule:
        implementations: name → what moves tensors; `single`, which is always there, and any of `foreach`, `fused` and
            `native`; `triton`, kernels for a GPU, which know 16 and 8 bits and leave out what is not finite by
            themselves; and if the rule is not elementwise `sharded`, which moves DTensors, and `finite`, which leaves
            out elements whose gradient is not finite (`native` does so by itself).
        preference: device type → names of implementations, the best first; `single` where there is none.
        elementwise: whether each element moves by itself. Then tensors may be cut into pieces, and a shard of one is
            moved as a tensor is.
        reads_group: whether it looks at all parameters of a group at once.
        reads_scalar: whether it depends on the σ of one particular law.
        float32_state: names of state tensors that are float32 whatever the parameter is.
        eight_bit_state: names of state tensors that `state="8bit"` keeps in 8 bits.
        native_in_any_format: whether `native` works on parameters and state of fewer than 32 bits as they are.
        unknown_at_first: names of what `memory` gives as None until a step has been taken.
        options: name → what the optimizer's constructor takes for it; they lie in the parameter groups.
    """

    implementations: ClassVar[Mapping[str, Implementation]]
    preference: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cpu": ("native",),
        "cuda": ("triton", "foreach"),
        "xpu": ("triton", "foreach"),
    }
    elementwise: ClassVar[bool] = True
    reads_group: ClassVar[bool] = False
    reads_scalar: ClassVar[bool] = False
    float32_state: ClassVar[frozenset[str]] = frozenset()
    eight_bit_state: ClassVar[frozenset[str]] = frozenset()
    native_in_any_format: ClassVar[bool] = True
    unknown_at_first: ClassVar[frozenset[str]] = frozenset()
    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        """Begins with the optimizer's defaults, its options included."""

    @classmethod
    def takes_parts(cls) -> bool:
        """Whether it does as well with flat parts of the parameters, which is what DeepSpeed hands over."""
        return cls.elementwise and not cls.reads_group

    def new_state(self, param: torch.Tensor) -> State:
        """The state of a parameter before its first step, with the same names at any time."""
        return {}

    def hyperparameters(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        """The numbers of this step for a parameter group."""
        return Hyperparameters.of(group, decision)

    def before_step(self, groups: Sequence[Mapping[str, Any]], decision: Decision) -> None:
        """Called once a step, before any parameter moves."""

    def after_step(self, decision: Decision) -> None:
        """Called once a step, after all parameters have moved."""

    def memory(self) -> dict[str, float | None]:
        """What the rule keeps once per optimizer, as plain numbers; it is saved with the emotion."""
        return {}

    def load_memory(self, saved: Mapping[str, Any]) -> None:
        """Take over what `memory` gave."""


def each_way(kernel: str, keys: Sequence[str], move: Implementation) -> dict[str, Implementation]:
    """The implementations of an elementwise rule.

    Args:
        kernel: its name in `kernels/gpu/source/elementwise.py`; in C it is `emo_` and that.
        keys: names of its state tensors, in the order of the kernels.
        move: the rule in operators on lists of tensors.
    """
    single = in_pieces(move)
    otherwise = careful(single, elementwise=True)
    return {
        "single": single,
        "foreach": bounded(move),
        "native": launch.elementwise(kernel, keys, otherwise),
        "triton": gpu.elementwise(kernel, keys, otherwise),
    }


def careful(move: Implementation, *, elementwise: bool = False) -> Implementation:
    """`move` as kernels do it: in float32, and without elements whose gradient is not finite, if such are left out."""
    return in_float32_if_kept_in_less(masked(move), elementwise=elementwise)


def whole_and_finite(implementations: Mapping[str, Implementation]) -> dict[str, Implementation]:
    """The implementations of an elementwise rule, with those that other rules have beside."""
    single = implementations["single"]
    return {**implementations, "sharded": on_local_elements(single), "finite": masked(single, elementwise=True)}


def zeros(param: torch.Tensor, *keys: str) -> State:
    """State tensors that are laid out as their parameter is."""
    return {key: torch.zeros_like(param, memory_format=torch.preserve_format) for key in keys}


def first_group_norm(group: Mapping[str, Any], remembered: float | torch.Tensor | None) -> tuple[torch.Tensor, Any]:
    """Σ‖p‖₁ over all parameters of a group, with a gradient or not, the same on every rank, without a wait.

    Args:
        group: the group.
        remembered: such a norm of an earlier step, which is returned beside it, where the present one lies.
    """
    params = list(group["params"])
    norms = whole_norms(params, [local_elements(param.detach()) for param in params], 1)
    norm = torch.stack([of_one.to(norms[0].device) for of_one in norms]).sum()
    before = None if remembered is None else torch.as_tensor(remembered, dtype=norm.dtype, device=norm.device)
    return norm, before
