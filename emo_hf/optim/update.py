"""What moves parameters, and what it is handed: a bucket of tensors of one kind, and the numbers of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from emo_hf.laws.decision import Decision

if TYPE_CHECKING:
    from emo_hf.optim.left_out import LeftOut

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


@dataclass(slots=True)
class Bucket:
    """Parameters of one device and one dtype, with their gradients and their states in the same order."""

    params: list[torch.Tensor] = field(default_factory=list)
    grads: list[torch.Tensor] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    @staticmethod
    def of(parts: Iterable[tuple[torch.Tensor, torch.Tensor, State]]) -> Bucket:
        """A bucket of (parameter, gradient, state)."""
        bucket = Bucket()
        for param, grad, state in parts:
            bucket.add(param, grad, state)
        return bucket

    def add(self, param: torch.Tensor, grad: torch.Tensor, state: State) -> None:
        self.params.append(param)
        self.grads.append(grad)
        self.states.append(state)

    def __len__(self) -> int:
        return len(self.params)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, State]]:
        return zip(self.params, self.grads, self.states, strict=True)

    def some(self, places: Sequence[int]) -> Bucket:
        """Those at some places of the lists."""
        params, grads, states = self.params, self.grads, self.states
        return Bucket([params[i] for i in places], [grads[i] for i in places], [states[i] for i in places])

    def state(self, key: str) -> list[torch.Tensor]:
        """One state tensor of each parameter."""
        return [state[key] for state in self.states]


PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensors whose elements are where they seem to be; a DTensor, say, is not among them."""

_LAZY = (torch.Tensor.is_neg, torch.Tensor._is_zerotensor, torch._is_functional_tensor)


def any_lazy(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether some tensors are not what their memory says: torch notes signs and zeros of some beside it."""
    return any([any(map(is_lazy, tensors)) for is_lazy in _LAZY])  # for every tensor of every step


def as_memory_says(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is what its memory says: itself, or a copy."""
    if torch._is_functional_tensor(tensor):
        torch._functionalize_sync(tensor)
        tensor = torch._from_functional_tensor(tensor)
    return tensor.clone() if any_lazy([tensor]) else tensor


def of_one_layout(*tensors: torch.Tensor) -> bool:
    """Whether the tensors hold their elements in one order without gaps: what torch's fused kernels expect."""
    first = tensors[0]
    dense = first.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(first)
    return dense and all(tensor.stride() == first.stride() for tensor in tensors)


def is_flat(*tensors: torch.Tensor) -> bool:
    """Whether the elements of the tensors lie where they seem to, one after the other."""
    return all(type(tensor) in PLAIN and tensor.is_contiguous() for tensor in tensors)


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


Implementation: TypeAlias = "Callable[[Bucket, Hyperparameters], None]"
"""Moves the parameters of a bucket in place."""


def where(fits: Callable[..., bool], run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters for which `fits(parameter, gradient, *states)`, `otherwise` for the others."""

    def update(bucket: Bucket, h: Hyperparameters) -> None:
        fit = [fits(p, g, *state.values()) for p, g, state in bucket]
        if all(fit):
            return run(bucket, h)
        for chosen, wanted in ((run, True), (otherwise, False)):
            part = bucket.some([i for i, it_fits in enumerate(fit) if it_fits is wanted])
            if len(part):
                chosen(part, h)
        return None

    return update


def one_by_one(update: Implementation) -> Implementation:
    """`update`, called for one parameter at a time."""

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        for part in bucket:
            update(Bucket.of([part]), h)

    return run
