"""Where the kernels are tried: on a GPU, or under Triton's interpreter in main memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emo_hf import EmoOptimizer
from emo_hf.optim.kernels.gpu import elementwise, fact
from emo_hf.optim.kernels.gpu.available import is_interpreted
from emo_hf.optim.kernels.launch import PLAINLY, Kept
from emo_hf.optim.left_out import LeftOut
from emo_hf.optim.update import Hyperparameters
from tests.emo_cases import losses
from tests.optim.kernels.common import H, Tensors
from tests.optim.kernels.references import CASES, Case, Reference

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
GPU_CASES = [case for case in CASES if case.function[4:] in ("navi", "lynx", "fact_vector", "sign", "neco")]
CODES = (torch.int8, torch.uint8)
LOW = (torch.bfloat16, torch.float16)
PIECE = elementwise.BLOCK * elementwise.BLOCKS
SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0,), (7,), (33, 65), (PIECE - 1,), (PIECE,), (2 * PIECE + 5,)]
MATRICES: list[tuple[int, ...]] = [(3, 4), (1, 7), (7, 1), (33, 65), (2, 3, 5, 2), (3, 512), (1030, 4), (70, 300)]


def counting(h: Hyperparameters = H) -> Hyperparameters:
    """The numbers of a step that leaves out what is not finite."""
    return replace(h, left_out=LeftOut())


def on_device(tensors: Tensors, dtype: torch.dtype = torch.float32) -> Tensors:
    """Copies where the kernels work."""
    made = tensors.copy(dtype)
    lists = [[tensor.to(DEVICE) for tensor in of_kind] for of_kind in (made.params, made.grads, *made.states)]
    return Tensors(lists[0], lists[1], lists[2:], tensors.scales)


def move(case: Case, tensors: Tensors, h: Hyperparameters, kept: Kept = PLAINLY) -> None:
    of_rule = tensors.params, tensors.grads, tensors.states
    elementwise.move(case.function[4:], *of_rule, h, kept, by_norm=case.scaled)


def move_matrices(tensors: Tensors, h: Hyperparameters, kept: Kept = PLAINLY) -> None:
    rows, columns = tensors.states
    fact.move_matrices(tensors.params, tensors.grads, rows, columns, h, kept)


def give_gradients(params: Sequence[Tensor], step: int) -> None:
    """Gradients that depend on the step alone, where the parameters are."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)


def run(optimizer: EmoOptimizer, steps: int) -> None:
    """Take steps with the gradients and losses that belong to their numbers."""
    for step, loss in enumerate(losses(steps)):
        give_gradients(optimizer.param_groups[0]["params"], step)
        optimizer.observe(loss)
        optimizer.step()


def assert_as_the_formula_says(moved: Tensors, before: Tensors, reference: Reference, h: Hyperparameters) -> None:
    """Compare with the formula in float64; `before.scales` says whether there is a scale, ‖g‖₂ + ε of the finite."""
    exact = before.copy(torch.float64)
    for i, (p, g, *state) in enumerate(zip(exact.params, exact.grads, *exact.states, strict=True)):
        scale = None if before.scales is None else float(g[g.isfinite()].norm()) + h.eps
        new_p, new_state = reference(p, g, state, h, scale)
        finite = g.isfinite() if h.left_out is not None else torch.ones_like(g, dtype=torch.bool)
        for ours, expected, old in zip(
            [moved.params[i], *(of_kind[i] for of_kind in moved.states)], [new_p, *new_state], [p, *state], strict=True
        ):
            wanted = torch.where(finite, expected, old) if expected.shape == g.shape else expected
            torch.testing.assert_close(ours.double().cpu(), wanted, rtol=2e-5, atol=1e-6)


def assert_codes_agree(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Sums may be rounded in another order, so that a code may be the next."""
    different = torch.cat([(a.int() - b.int()).abs().flatten() for a, b in zip(ours, wanted, strict=True)])
    assert int(different.max()) <= 1
    assert float((different > 0).float().mean()) < 2e-3
