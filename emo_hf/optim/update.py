"""What moves parameters, and what it is handed: tensors of one kind, and the numbers of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from emo_hf.laws.decision import Decision

if TYPE_CHECKING:
    from emo_hf.optim.tensors.left_out import LeftOut

SMALLEST_FLOAT16 = 2.0**-24

State: TypeAlias = "dict[str, torch.Tensor]"


class StateOfPart(dict[str, torch.Tensor]):
    """The state of a part of a parameter.

    Attributes:
        place: that of the part's first element in the whole parameter, flat.
    """

    __slots__ = ("place",)

    def __init__(self, tensors: Mapping[str, torch.Tensor], place: int) -> None:
        super().__init__(tensors)
        self.place = place


def place_of(state: State) -> int:
    """The place of the first element, in the whole parameter, of what a state belongs to."""
    return state.place if isinstance(state, StateOfPart) else 0


PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensors whose elements are where they seem to be; a DTensor, say, is not among them."""

_LAZY = (torch.Tensor.is_neg, torch.Tensor._is_zerotensor, torch._is_functional_tensor)


def any_lazy(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensors are not what their memory says: torch notes signs and zeros of some beside it."""
    return any([any(map(is_lazy, tensors)) for is_lazy in _LAZY])  # for every tensor of every step


def as_memory_says(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is what its memory says: itself, or a copy."""
    if torch._is_functional_tensor(tensor):
        torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
        tensor = torch._from_functional_tensor(tensor)
    return tensor.clone() if any_lazy([tensor]) else tensor


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers of one step of one parameter group.

    Attributes:
        lr: the learning rate that the step is taken with, the group's times the law's coefficient.
        decay: the share of the parameter that decays.
        beta1, beta2, eps: as in the group.
        scalar: σ of the law, for the rules that read it.
        seed: of the step, for what is rounded at random.
        left_out: counts the elements that are left out because their gradient is not finite; None if they are not.
        extra: what a rule has of its own.
    """

    lr: float
    decay: float
    beta1: float
    beta2: float
    eps: float
    scalar: float = 0.0
    seed: int = 0
    left_out: LeftOut | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        lr = float(group["lr"])
        beta1, beta2 = group["betas"]
        return Hyperparameters(
            lr=decision.step_size(lr),
            decay=decision.decay_size(lr) * group["weight_decay"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            scalar=decision.scalar,
        )

    def representable_in(self, dtype: torch.dtype) -> Hyperparameters:
        """The same numbers, but for an ε that float16 would round to 0: a gradient of 0 would be divided by it."""
        return replace(self, eps=max(self.eps, SMALLEST_FLOAT16)) if dtype is torch.float16 else self


Implementation: TypeAlias = "Callable[[list[torch.Tensor], list[torch.Tensor], list[State], Hyperparameters], None]"
"""Moves parameters in place: (parameters, gradients, states, hyperparameters), on one device and of one dtype."""
