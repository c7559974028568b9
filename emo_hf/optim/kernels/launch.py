"""Runs the elementwise kernels over lists of tensors, on as many threads as torch is set to use.

The interpreter lock is free while a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from emo_hf.optim.finite import has_no_numbers
from emo_hf.optim.kernels.build import kernels
from emo_hf.optim.kernels.library import (
    BY_DTYPE,
    FLOATS,
    KernelHyperparameters,
    Layout,
    Library,
    addresses,
    ends_of,
    integers,
)
from emo_hf.optim.kernels.team import team_for
from emo_hf.optim.kernels.tensors import KernelTensors, check_memory, where_it_fits
from emo_hf.optim.sharding import whole_norms
from emo_hf.optim.update import Bucket, Hyperparameters, Implementation


def works_for(param: torch.Tensor) -> bool:
    """Whether the kernels are the best choice for a parameter; the first such one has them compiled or loaded."""
    in_main_memory = param.device.type == "cpu" and not has_no_numbers(param)
    return param.dtype in FLOATS and in_main_memory and kernels() is not None


def is_main_memory(device: torch.device) -> bool:
    """Whether the kernels work on a device."""
    return device.type == "cpu"


def required_library() -> Library:
    """The compiled kernels.

    Raises:
        RuntimeError: if there are none.
    """
    library = kernels()
    if library is None:
        raise RuntimeError("native=True needs a C compiler, and none works here: leave native=None")
    return library


def elementwise(
    kernel: str,
    keys: Sequence[str],
    otherwise: Implementation,
    by_norm: Callable[[Hyperparameters], bool] = lambda h: False,
) -> Implementation:
    """An implementation by an elementwise kernel, which works on any format of its tensors (`formats.h`).

    Args:
        kernel: its name; in C it is `emo_` and that.
        keys: names of its state tensors, in its order.
        otherwise: what moves the parameters that the kernels cannot work on.
        by_norm: says of the numbers of a step whether it is scaled by ‖g‖₂ + ε.
    """

    def run(bucket: Bucket, h: Hyperparameters) -> None:
        scales = None
        if by_norm(h):
            scales = torch.stack(whole_norms(bucket.params, bucket.grads, 2)) + h.eps
            if h.left_out is not None and not bool(scales.isfinite().all()):
                return otherwise(bucket, h)
        return run_elementwise(f"emo_{kernel}", KernelTensors.in_memory_order(bucket, keys), h, scales)

    return where_it_fits(run, otherwise)


def run_elementwise(
    function: str, tensors: KernelTensors, h: Hyperparameters, scales: torch.Tensor | None = None
) -> None:
    """Move parameters by an elementwise kernel.

    Args:
        function: the kernel's name in C: `emo_navi`, say.
        tensors: what it works on.
        h: the numbers of the step.
        scales: one number per parameter, for the rules that take them.

    Raises:
        UnfitError: if the kernels cannot work on a tensor. Nothing has been moved then.
        RuntimeError: if tensors do not belong together, or there are no kernels; nothing has been moved either.
    """
    tensors.check(is_main_memory)
    params, states = tensors.params, tensors.states
    if not params:
        return
    library = required_library()
    if scales is not None:
        scales = scales.detach().to(device="cpu", dtype=torch.float32).contiguous()
    counts = list(map(torch.Tensor.numel, params))
    ends = ends_of(counts, library)
    first, second = [*states, None, None][:2]
    first_sizes, second_sizes = [*tensors.sizes, None, None][:2]
    left_out = integers([0] * len(params))
    lacking = library.elementwise(
        library.rules[function],
        team_for(ends[-1], library),
        len(params),
        integers(counts),
        ends,
        None if tensors.places is None else integers(tensors.places),
        *map(addresses, (params, tensors.grads, first, second, tensors.compensation, first_sizes, second_sizes)),
        None if scales is None else scales.data_ptr(),
        left_out,
        layout_of(tensors, h),
        KernelHyperparameters.of(h),
    )
    check_memory(lacking)
    torch.autograd.graph.increment_version(params)
    if h.left_out is not None and any(left_out):
        h.left_out.add(sum(left_out))


def layout_of(tensors: KernelTensors, h: Hyperparameters) -> Layout:
    """How the kernels find the tensors, each list of one dtype."""
    lists = [tensors.params, tensors.grads, *tensors.states]
    formats = [BY_DTYPE[of_kind[0].dtype] for of_kind in lists] + [0] * (4 - len(lists))
    compensation = 0 if tensors.compensation is None else BY_DTYPE[tensors.compensation[0].dtype]
    return Layout(*formats, compensation, h.left_out is not None, h.seed)
