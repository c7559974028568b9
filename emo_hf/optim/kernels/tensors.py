"""What a rule hands to a kernel, in C or in Triton, and what that relies on: it is handed addresses and trusts them.

Each check is a few comparisons of whole lists, because it runs for all tensors of every step; which tensor it is that
does not hold is looked for afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.library import BY_DTYPE
from emo_hf.optim.precision.eight_bits import SIZES, blocks_of, is_eight_bit
from emo_hf.optim.state_keys import COMPENSATION
from emo_hf.optim.update import (
    PLAIN,
    Bucket,
    Hyperparameters,
    Implementation,
    State,
    StateOfPart,
    of_one_layout,
    one_by_one,
    place_of,
)

AFTER_RESIZING = (
    "If the parameter was resized since its first step, make the optimizer anew after resizing, or delete its state "
    "with optimizer.state.pop(parameter)."
)
AFTER_BACKWARD = (
    "If the parameter was resized since backward(), call optimizer.zero_grad() after resizing, then backward() again."
)

Tensors: TypeAlias = list[torch.Tensor]
_shape, _elements, _device = attrgetter("shape"), torch.Tensor.numel, attrgetter("device")


class UnfitError(RuntimeError):
    """The kernels cannot work on some tensors; nothing has been moved, and torch moves them instead."""


def where_it_fits(run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters that the kernels can work on, `otherwise` for the others.

    Args:
        run: looks at all tensors before it moves one, and raises `UnfitError` if one does not fit: in nearly every
            step all do, and no other look is taken.
        otherwise: moves what does not fit.
    """

    def update(bucket: Bucket, h: Hyperparameters) -> None:
        try:
            return run(bucket, h)
        except UnfitError:
            pass  # and out of this block: errors of what follows are not consequences of this one
        return otherwise(bucket, h) if len(bucket) == 1 else one_by_one(update)(bucket, h)

    return update


def all_fit(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether kernels can work on a list: plain contiguous tensors of one device and of one dtype that they know.

    Subclasses (a DTensor, say) are left to PyTorch, which knows where their elements are.
    """
    if not tensors:
        return True
    dtype, on_cpu = tensors[0].dtype, tensors[0].is_cpu  # what follows runs for every tensor of every step
    fit = all([type(t) in PLAIN and t.dtype is dtype and t.is_cpu is on_cpu and t.is_contiguous() for t in tensors])
    return fit and _is_known(dtype, on_cpu) and (on_cpu or len(set(map(_device, tensors))) == 1)


def _is_known(dtype: torch.dtype, on_cpu: bool) -> bool:
    if dtype is torch.float16 and on_cpu:  # that is up to the compiler
        library = kernels()
        return library is not None and library.has_float16
    return dtype in BY_DTYPE


@dataclass(frozen=True, slots=True)
class KernelTensors:
    """Lists with one tensor per parameter, each of one dtype.

    Attributes:
        params: the parameters, which are moved in place.
        grads: their gradients.
        states: a list for each state tensor of the rule, in the kernel's order.
        compensation: what rounding took from parameters in fewer than 32 bits, if that is kept.
        sizes: for each state tensor the sizes of its blocks where it is kept in 8 bits, otherwise None.
        places: those of the tensors' first elements in the parameters of which they are parts; None if all are whole.
    """

    params: Tensors
    grads: Tensors
    states: Sequence[Tensors] = ()
    compensation: Tensors | None = None
    sizes: Sequence[Tensors | None] = ()
    places: list[int] | None = None

    @staticmethod
    def of(bucket: Bucket, keys: Sequence[str] = ()) -> KernelTensors:
        """The tensors of a bucket, whose state tensors of these names are all kept in the same way."""
        states = bucket.states
        first = states[0] if states else {}
        compensation = bucket.state(COMPENSATION) if COMPENSATION in first else None
        sizes = [bucket.state(key + SIZES) if key + SIZES in first else None for key in keys]
        places = list(map(place_of, states)) if compensation or any(sizes) else []  # only chance depends on them
        own = [bucket.state(key) for key in keys]
        return KernelTensors(bucket.params, bucket.grads, own, compensation, sizes, places if any(places) else None)

    @staticmethod
    def in_memory_order(bucket: Bucket, keys: Sequence[str]) -> KernelTensors:
        """The same for a rule that is elementwise: what is dense, as channels_last is, as flat views of its memory."""
        if not all([param.is_contiguous() for param in bucket.params]):
            bucket = Bucket.of(_flat(*of_one) for of_one in bucket)
        return KernelTensors.of(bucket, keys)

    @property
    def has_chance(self) -> bool:
        """Whether something is rounded at random."""
        return any(self.sizes) or (self.compensation is not None and is_eight_bit(self.compensation[0]))

    def check(self, works_on: Callable[[torch.device], bool]) -> None:
        """Check what an elementwise kernel relies on.

        Args:
            works_on: whether the kernels work on a device.

        Raises:
            UnfitError: if the kernels cannot work on some tensors.
            RuntimeError: if tensors differ in shape from their parameter, or codes and sizes do not belong together.
        """
        shapes = list(map(_shape, self.params))
        lists: list[tuple[str, Tensors, Any, Sequence[object]]] = []
        for name, values, sizes in zip(("first", "second"), self.states, [*self.sizes, None, None], strict=False):
            lists.append((f"{name} state tensor", values, _shape, shapes))
            if values and is_eight_bit(values[0]) is (sizes is None):
                raise RuntimeError(f"{name} state tensors are {values[0].dtype}: sizes of blocks are for 8 bits alone")
            if sizes:
                needed = [blocks_of(param.numel()) for param in self.params]
                lists.append((f"sizes of {name} state tensor", sizes, _elements, needed))
        self._check_lists(shapes, lists, works_on)

    def check_matrices(self, works_on: Callable[[torch.device], bool]) -> tuple[list[int], list[int]]:
        """Check what the kernels for matrices rely on, whose state tensors are the sizes of rows and of columns.

        Returns:
            The numbers of rows and of columns. A row is what has one index of the first dim.

        Raises:
            UnfitError, RuntimeError: as `check`.
        """
        shapes = list(map(_shape, self.params))
        heights, widths = [of[0] for of in shapes], [math.prod(of[1:]) for of in shapes]
        rows, columns = self.states
        lists = [("row state", rows, _elements, heights), ("column state", columns, _elements, widths)]
        self._check_lists(shapes, lists, works_on)
        return heights, widths

    def _check_lists(
        self, shapes: list[torch.Size], lists: list[tuple[str, Tensors, Any, Any]], works_on: Callable[..., bool]
    ) -> None:
        """Check lists of (name, tensors, what of them, what that has to be); those of numbers are in float32."""
        lists = [("gradient", self.grads, _shape, shapes), *lists]
        if self.compensation:
            lists.append(("compensation", self.compensation, _shape, shapes))
            kept, own = self.compensation[0].dtype, self.params[0].dtype
            if kept is not own and (kept is not torch.int8 or own is not torch.bfloat16):
                raise UnfitError(f"the compensation is {kept} and its parameter {own}: only torch.bfloat16 has int8")
        for name, tensors, quantity, _ in [("parameter", self.params, _shape, shapes), *lists]:
            in_float32 = quantity is _shape or not tensors or tensors[0].dtype is torch.float32
            together = not tensors or tensors[0].device == self.params[0].device
            if not (in_float32 and together and all_fit(tensors)):
                raise UnfitError(f"a {name} is no plain contiguous tensor as the kernels know it")
        if self.params and not works_on(self.params[0].device):
            raise UnfitError(f"the kernels do not work on {self.params[0].device}")
        for name, tensors, quantity, needed in lists:
            found = list(map(quantity, tensors))
            if found != needed:
                i = next(i for i, pair in enumerate(zip(found, needed, strict=True)) if pair[0] != pair[1])
                raise RuntimeError(
                    f"{name} {i} of {len(found)} has {'shape' if quantity is _shape else 'number of elements'} "
                    f"{_readable(found[i])}, but its parameter needs {_readable(needed[i])}. "
                    f"{AFTER_BACKWARD if name == 'gradient' else AFTER_RESIZING}"
                )


def _flat(param: torch.Tensor, grad: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor, State]:
    tensors = [param, grad, *state.values()]
    plain = all(type(tensor) in PLAIN for tensor in tensors)
    if param.is_contiguous() or not plain or not of_one_layout(*tensors):
        return param, grad, state
    p, g, *values = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    return p, g, StateOfPart(dict(zip(state, values, strict=True)), place_of(state))


def _readable(quantity: Any) -> Any:
    return list(quantity) if isinstance(quantity, torch.Size) else quantity


def check_memory(lacking: int) -> None:
    """Check what a kernel returned: −1, or the index of the first parameter that has a null pointer.

    Raises:
        RuntimeError: if there is one.
    """
    if lacking >= 0:
        raise RuntimeError(
            f"parameter {lacking} of those that the kernel was handed, its gradient or its state has no memory: its "
            "storage was freed (resized to 0, as some sharding and offloading code does), and must be filled again "
            "before the step."
        )
