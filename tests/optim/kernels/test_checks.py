"""What the kernels are not handed: they trust addresses, so whatever they rely on is looked at before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emo_hf.optim.kernels.checks import UnfitError
from tests.optim.kernels.common import (
    NAVI,
    NECO_SCALED,
    SIGN,
    each_case,
    matrices,
    move,
    move_matrices,
    needs_compiler,
    refused,
    run,
    strided,
    tensors_for,
)
from tests.optim.kernels.references import CASES, Case

pytestmark = needs_compiler

SHAPES = [(4, 4), (5,), (3, 2)]
MATRICES = [(4, 4), (6, 5), (3, 2)]
with_state = pytest.mark.parametrize("case", [case for case in CASES if case.state_tensors], ids=str)


@with_state
def test_a_parameter_that_was_resized_after_its_first_step_is_refused_with_the_remedy(case: Case) -> None:
    tensors = tensors_for(case, SHAPES)
    move(case, tensors)
    tensors.params[1].data, tensors.grads[1] = torch.ones(500_000), torch.ones(500_000)
    refused(
        run(case),
        tensors,
        r"first state tensor 1 of 3 has shape \[5\], but its parameter needs \[500000\]. "
        r".*make the optimizer anew after resizing, or delete its state with optimizer.state.pop\(parameter\)",
    )


@each_case
def test_a_parameter_that_was_resized_after_its_gradient_is_refused_with_the_remedy(case: Case) -> None:
    tensors = tensors_for(case, SHAPES)
    tensors.params[0].data = torch.ones(400, 400)
    refused(
        run(case),
        tensors,
        r"gradient 0 of 3 has shape \[4, 4\], but its parameter needs \[400, 400\]. .*call optimizer.zero_grad\(\)",
    )


@with_state
def test_another_shape_of_as_many_elements_is_refused(case: Case) -> None:
    tensors = tensors_for(case, SHAPES)
    tensors.states[-1][2] = tensors.states[-1][2].reshape(2, 3)
    refused(run(case), tensors, r"state tensor 2 of 3 has shape \[2, 3\], but its parameter needs \[3, 2\]")


def test_a_matrix_that_was_resized_after_its_first_step_is_refused_with_the_remedy() -> None:
    for shape, name, found, needed in (
        ((4000, 5), "row", 6, 4000),
        ((6, 5000), "column", 5, 5000),
        ((3000, 3000), "row", 6, 3000),  # which would be worked on in row blocks
    ):
        tensors = matrices(MATRICES)
        move_matrices(tensors)
        tensors.params[1].data, tensors.grads[1] = torch.ones(shape), torch.ones(shape)
        refused(
            move_matrices,
            tensors,
            f"{name} state 1 of 3 has number of elements {found}, but its parameter needs {needed}. "
            r".*optimizer.state.pop\(parameter\)",
        )


def test_a_matrix_that_was_resized_after_its_gradient_is_refused() -> None:
    tensors = matrices(MATRICES)
    tensors.params[0].data = torch.ones(400, 400)
    refused(move_matrices, tensors, r"gradient 0 of 3 has shape \[4, 4\], but its parameter needs \[400, 400\]")


def test_a_vector_is_no_matrix() -> None:
    tensors = matrices(MATRICES)
    tensors.params[1] = torch.ones(30)
    refused(move_matrices, tensors, "fewer than two dims")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Tensor.double, "is a Tensor of torch.float64 on cpu:"),
        (Tensor.bfloat16, "is a Tensor of torch.bfloat16 on cpu:"),
        (Tensor.half, "is a Tensor of torch.float16 on cpu:"),
        (lambda t: t.to("meta"), "is a Tensor of torch.float32 on meta:"),
        (strided, "is a Tensor of torch.float32 on cpu, not contiguous:"),
        (lambda t: t.as_subclass(nn.Buffer), "is a Buffer of torch.float32 on cpu:"),
        (lambda t: t.to_sparse(), "not contiguous"),
    ],
)
def test_only_plain_contiguous_float32_in_main_memory_is_handed_over(
    changed: Callable[[Tensor], Tensor], said: str
) -> None:
    for case, call in ((NAVI, run(NAVI)), (SIGN, run(SIGN)), (None, move_matrices)):
        make = tensors_for(case, SHAPES) if case else matrices(MATRICES)
        for tensors in (make.params, make.grads, *make.states):
            whole, tensors[1] = tensors[1], changed(tensors[1])
            with pytest.raises(UnfitError, match=f"1 of 3 {said}" if said.startswith("is") else said):
                call(make)
            tensors[1] = whole
        call(make)


@pytest.mark.parametrize("states", [0, 1, 3])
def test_a_kernel_is_handed_as_many_state_tensors_as_it_has(states: int) -> None:
    tensors = tensors_for(NAVI, SHAPES)
    tensors.states = [[torch.ones(shape) for shape in SHAPES] for _ in range(states)]
    refused(run(NAVI), tensors, "state tensors per parameter")


def test_a_rule_without_state_takes_none() -> None:
    tensors = tensors_for(SIGN, SHAPES)
    move(SIGN, tensors)
    tensors.states = [[torch.ones(shape) for shape in SHAPES]]
    refused(run(SIGN), tensors, "emo_sign works on 0 state tensors per parameter, not 1")


def test_lists_of_unequal_lengths_are_refused() -> None:
    for tensors, call in ((tensors_for(NAVI, SHAPES), run(NAVI)), (matrices(MATRICES), move_matrices)):
        for shorter in (tensors.grads, *tensors.states):
            last = shorter.pop()
            refused(call, tensors, "each parameter needs one of each, but their numbers are")
            shorter.append(last)


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (torch.ones(2), "2 scales for 3 parameters"),
        ([1.0] * 4, "4 scales for 3 parameters"),
        (torch.ones(3, 2), r"of shape \[3, 2\]"),
        (torch.tensor(1.0), r"of shape \[\]"),
        (torch.ones(3).as_subclass(nn.Buffer), "scales are a Buffer"),
    ],
)
def test_scales_are_as_many_as_parameters(scales: Any, said: str) -> None:
    tensors = tensors_for(NECO_SCALED, SHAPES)
    tensors.scales = scales
    refused(run(NECO_SCALED), tensors, said)


def test_a_rule_that_takes_no_scales_is_given_none() -> None:
    tensors = tensors_for(NAVI, SHAPES)
    tensors.scales = torch.ones(3)
    refused(run(NAVI), tensors, "emo_navi takes no scales")


def test_freed_memory_is_refused() -> None:
    for tensors, call in ((tensors_for(NAVI, SHAPES), run(NAVI)), (matrices(MATRICES), move_matrices)):
        for freed in (tensors.params[1], tensors.grads[1], *(state[1] for state in tensors.states)):
            size = freed.untyped_storage().nbytes()
            freed.untyped_storage().resize_(0)
            with pytest.raises(RuntimeError, match=r"parameter 1 of .* has no memory"):
                call(tensors)
            freed.untyped_storage().resize_(size)
            freed.fill_(1.0)
