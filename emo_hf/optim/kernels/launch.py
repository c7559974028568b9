"""Runs the elementwise kernels over lists of tensors, on as many threads as torch is set to use.

The interpreter lock is free while a kernel runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

import torch

from emo_hf.optim.finite import has_no_numbers
from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.checks import (
    UnfitError,
    all_fit,
    check_memory,
    check_numbers_of_elements,
    check_same_shapes,
    check_tensors,
)
from emo_hf.optim.kernels.library import (
    BY_DTYPE,
    KernelHyperparameters,
    Layout,
    Library,
    addresses,
    integers,
)
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.left_out import masked
from emo_hf.optim.precision.eight_bits import SIZES, blocks_of, is_eight_bit
from emo_hf.optim.precision.low import in_float32_if_kept_in_less
from emo_hf.optim.state_keys import COMPENSATION
from emo_hf.optim.update import PLAIN, Bucket, Hyperparameters, Implementation, State, place_of, where

WORKED_ON = (torch.float32, torch.bfloat16, torch.float16)


def works_for(param: torch.Tensor) -> bool:
    """Whether the kernels are the best choice for a parameter; the first such one has them compiled or loaded."""
    in_main_memory = param.device.type == "cpu" and not has_no_numbers(param)
    return param.dtype in WORKED_ON and in_main_memory and kernels() is not None


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
    """Whether the kernels can work on these tensors: plain, contiguous, in main memory, of dtypes that they know."""
    return all(all_fit([tensor]) for tensor in tensors)


def where_it_fits(run: Implementation, otherwise: Implementation) -> Implementation:
    """`run` for the parameters that the kernels can work on, `otherwise` for the others.

    Args:
        run: calls `run_elementwise` or `move_matrices` before it changes anything itself; they look at all tensors
            before they move one, and in nearly every step all fit: no other look is taken.
        otherwise: moves what does not fit.
    """
    each_by_what_fits = where(fits, run, otherwise)

    def update(bucket: Bucket, h: Hyperparameters) -> None:
        try:
            return run(bucket, h)
        except UnfitError:
            pass  # and out of this block: errors of what follows are not consequences of this one
        return each_by_what_fits(bucket, h)

    return update


def elementwise(function: str, keys: Sequence[str], otherwise: Implementation) -> Implementation:
    """An implementation by an elementwise kernel, which works on any format of its tensors (`formats.h`).

    Args:
        function: the kernel's name in C.
        keys: names of its state tensors, in its order.
        otherwise: what moves the parameters that the kernels cannot work on.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        states = [bucket.state(key) for key in keys]
        run_elementwise(function, bucket.params, bucket.grads, states, h, Kept.of(bucket.states, keys))

    return where_it_fits(run, in_float32_if_kept_in_less(masked(otherwise), elementwise=True))


@dataclass(frozen=True, slots=True)
class Kept:
    """What tensors that are kept in fewer bits have beside.

    Attributes:
        compensation: one tensor per parameter, or none.
        sizes: for each state tensor of the rule, one tensor of blocks' sizes per parameter, or None.
        places: those of the tensors' first elements in the parameters of which they are parts; None if all are whole.
    """

    compensation: list[torch.Tensor] | None = None
    sizes: Sequence[list[torch.Tensor] | None] = field(default_factory=list)
    places: list[int] | None = None

    @staticmethod
    def of(states: list[State], keys: Sequence[str] = ()) -> Kept:
        """What lies in the states of parameters that are all kept in the same way."""
        first = states[0] if states else {}
        compensation = [state[COMPENSATION] for state in states] if COMPENSATION in first else None
        sizes = [[state[key + SIZES] for state in states] if key + SIZES in first else None for key in keys]
        places = list(map(place_of, states)) if compensation or any(sizes) else []  # only chance depends on them
        return Kept(compensation, sizes, places if any(places) else None)


PLAINLY = Kept()


def run_elementwise(
    function: str,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: Sequence[list[torch.Tensor]],
    h: Hyperparameters,
    kept: Kept = PLAINLY,
    scales: torch.Tensor | Sequence[float] | None = None,
) -> None:
    """Move parameters by an elementwise kernel.

    Args:
        function: the kernel's name in C: `emo_navi`, say.
        params: the parameters, which are moved in place.
        grads: their gradients, of the same shapes.
        states: a list for each state tensor of the rule, with one tensor for each parameter, of its shape.
        h: the numbers of the step.
        kept: what belongs to parameters and states in fewer than 32 bits.
        scales: one number per parameter, for the rules that take them.

    Raises:
        UnfitError: if a tensor is not plain and contiguous in main memory, or the tensors of a list are not of one
            dtype that the kernels know. Nothing has been moved then.
        RuntimeError: if anything else is not as said above, or there are no kernels; nothing has been moved either.
    """
    if len(states) > 2:
        raise RuntimeError(f"{function} is handed {len(states)} state tensors per parameter, and no kernel has over 2")
    of_state = dict(zip(("first_state_tensor", "second_state_tensor"), states, strict=False))
    if kept.compensation is not None:
        of_state["compensation"] = kept.compensation
    of_sizes = {f"sizes_of_state_{i}": sizes for i, sizes in enumerate(kept.sizes) if sizes is not None}
    check_tensors(parameter=params, gradient=grads, **of_state, **of_sizes)
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
    counts = list(map(torch.Tensor.numel, params))
    for values, sizes in zip_longest(states, kept.sizes):
        if is_eight_bit(values[0]) is (sizes is None):
            raise RuntimeError(f"{function} needs blocks' sizes for state in 8 bits, and for no other")
    for name, sizes in of_sizes.items():
        check_numbers_of_elements(name, sizes, list(map(blocks_of, counts)))
    block = library.block
    ends = integers(accumulate([-(-count // block) * block for count in counts]))
    pair = [*states, None, None][:2], [*kept.sizes, None, None][:2]
    left_out = integers([0] * len(params))
    lacking = library.elementwise(
        rule,
        team_for(ends[-1], library),
        len(params),
        integers(counts),
        ends,
        None if kept.places is None else integers(kept.places),
        *map(addresses, (params, grads, *pair[0], kept.compensation, *pair[1])),
        None if scales is None else scales.data_ptr(),
        left_out,
        layout_of(params, grads, states, kept, h),
        KernelHyperparameters.of(h),
    )
    check_memory(lacking)
    torch.autograd.graph.increment_version(params)
    if h.left_out is not None and any(left_out):
        h.left_out.add(sum(left_out))


def layout_of(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    states: Sequence[list[torch.Tensor]],
    kept: Kept,
    h: Hyperparameters,
) -> Layout:
    """How the kernels find the tensors, each list of one dtype."""
    lists = [params, grads, *states]
    formats = [BY_DTYPE[tensors[0].dtype] for tensors in lists] + [0] * (4 - len(lists))
    compensation = 0 if kept.compensation is None else BY_DTYPE[kept.compensation[0].dtype]
    return Layout(*formats, compensation, h.left_out is not None, h.seed)


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
