"""Runs the elementwise kernels over lists of tensors, on as many threads as torch is set to use.

The interpreter lock is free while a kernel runs.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch

from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.checks import UnfitError, all_fit, check_memory, check_same_shapes, check_tensors
from emo_hf.optim.kernels.library import KernelHyperparameters, Library
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.tensors.dispatch import state_tensors, where
from emo_hf.optim.update import PLAIN, Hyperparameters, Implementation, State

WORKED_ON = (torch.float32, torch.bfloat16, torch.float16)  # the last two in float32 copies


def works_for(param: torch.Tensor) -> bool:
    """Whether the kernels are the best choice for a parameter; the first such one has them compiled or loaded."""
    return param.dtype in WORKED_ON and param.device.type == "cpu" and kernels() is not None


def required_library() -> Library:
    """The compiled kernels.

    Raises:
        RuntimeError: if there are none.
    """
    library = kernels()
    if library is None:
        raise RuntimeError("native=True needs a C compiler, and none works here: leave native=None")
    return library


def fits(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can work on these tensors: plain, contiguous float32 in main memory."""
    return all_fit(tensors)


def where_it_fits(run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters that the kernels can work on, `otherwise` for the others.

    Args:
        run: calls `run_elementwise` or `move_matrices` before it changes anything itself; they look at all tensors
            before they move one, and in nearly every step all fit: no other look is taken.
        otherwise: moves what does not fit.
    """
    one_by_one = where(fits, run, otherwise)

    def update(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        try:
            return run(params, grads, states, h)
        except UnfitError:
            pass  # and out of this block: errors of what follows are not consequences of this one
        return one_by_one(params, grads, states, h)

    return update


def elementwise(function: str, keys: Sequence[str], otherwise: Implementation) -> Implementation:
    """An implementation by an elementwise kernel.

    Args:
        function: the kernel's name in C.
        keys: names of its state tensors, in its order.
        otherwise: what moves the parameters that the kernels cannot work on.
    """

    def run(params: list[torch.Tensor], grads: list[torch.Tensor], states: list[State], h: Hyperparameters) -> None:
        run_elementwise(function, params, grads, [state_tensors(states, key) for key in keys], h)

    return where_it_fits(run, otherwise)


def run_elementwise(
    function: str,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: Sequence[list[torch.Tensor]],
    h: Hyperparameters,
    scales: torch.Tensor | Sequence[float] | None = None,
) -> None:
    """Move parameters by an elementwise kernel.

    Args:
        function: the kernel's name in C: `emo_navi`, say.
        params: the parameters, which are moved in place.
        grads: their gradients, of the same shapes.
        states: a list for each state tensor of the rule, with one tensor for each parameter, of its shape.
        h: the numbers of the step.
        scales: one number per parameter, for the rules that take them.

    Raises:
        UnfitError: if a tensor is not plain contiguous float32 in main memory. Nothing has been moved then.
        RuntimeError: if anything else is not as said above, or there are no kernels; nothing has been moved either.
    """
    if len(states) > 2:
        raise RuntimeError(f"{function} is handed {len(states)} state tensors per parameter, and no kernel has over 2")
    of_state = dict(zip(("first_state_tensor", "second_state_tensor"), states, strict=False))
    check_tensors(parameter=params, gradient=grads, **of_state)
    check_same_shapes(params, gradient=grads, **of_state)
    if not params:
        return
    library = required_library()
    rule = library.rule(function)
    if len(states) != rule.state_tensors:
        raise RuntimeError(f"{function} works on {rule.state_tensors} state tensors per parameter, not {len(states)}")
    if scales is not None:
        if not rule.takes_scales:
            raise RuntimeError(f"{function} takes no scales: leave scales=None")
        scales = as_floats(scales, len(params))
    ends = integers(accumulate(map(torch.Tensor.numel, params)))
    addresses: list[Any] = [integers(map(torch.Tensor.data_ptr, tensors)) for tensors in (params, grads, *states)]
    addresses += [None] * (4 - len(addresses))
    lacking = library.elementwise(
        rule,
        team_for(ends[-1], library),
        len(params),
        ends,
        *addresses,
        None if scales is None else scales.data_ptr(),
        KernelHyperparameters.of(h),
    )
    check_memory(lacking)
    torch.autograd.graph.increment_version(params)


def as_floats(scales: torch.Tensor | Sequence[float], count: int) -> torch.Tensor:
    """The scales as the kernels read them.

    Raises:
        RuntimeError: if they are not one number per parameter.
    """
    if isinstance(scales, torch.Tensor) and (type(scales) not in PLAIN or scales.dim() != 1):
        raise RuntimeError(
            f"scales are a {type(scales).__name__} of shape {list(scales.shape)}: a plain tensor is needed, of shape "
            f"[{count}]"
        )
    if len(scales) != count:
        raise RuntimeError(f"there are {len(scales)} scales for {count} parameters: each needs one")
    if isinstance(scales, torch.Tensor):
        return scales.detach().to(device="cpu", dtype=torch.float32).contiguous()
    return torch.tensor(list(scales), dtype=torch.float32, device="cpu")


def integers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    """Counts, or addresses of elements, as the kernels read them."""
    numbers = array("q", list(values))  # much faster to fill than an array of ctypes, and from a list of exact size
    return (ctypes.c_int64 * len(numbers)).from_buffer(numbers)
