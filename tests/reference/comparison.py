"""Runs an optimizer and the slow reference of it side by side; the one module here that knows `emo_hf`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from emo_hf import EmoOptimizer
from emo_hf.optim.version import Version
from tests.emo_cases import assert_identical, make
from tests.reference.optimizer import Options, ReferenceGroup, ReferenceOptimizer

# What the parameters may be off after some steps of rates up to 0.02. A step of EmoNavi at β1 = 0 is 32·lr long, and
# every operation rounds to the precision of the dtype; bfloat16 knows 3 digits, float16 4.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}

FIRST_LR = 0.02  # the constructor's, as a rate, which some decays are relative to
FIRST_BETAS = (0.8, 0.98)  # the constructor's
SCALE = 1e4  # how much larger `lr` is where it is a scale


@dataclass(frozen=True)
class TensorCase:
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = "plain"
    gradient_layout: str | None = None  # None: as the parameter's


@dataclass(frozen=True)
class GroupCase:
    tensors: list[TensorCase]
    options: dict[str, Any]  # of any emo optimizer; lr as a rate
    rule_options: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)  # what a scheduler multiplies lr by, step by step


@dataclass(frozen=True)
class Case:
    groups: list[GroupCase]
    losses: list[float | None]
    seed: int
    missing: list[int] = field(default_factory=list)  # numbers of gradients that are None
    law: str | None = None
    law_options: dict[str, Any] = field(default_factory=dict)
    first_group_is_zero: bool = False  # at the start

    def __hash__(self) -> int:
        return hash(repr(self))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, arranged differently in memory."""
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and values.dim() >= 1:
        holes = torch.full((*values.shape[:-1], 2 * values.shape[-1]), 77.0, dtype=values.dtype)
        holes[..., ::2] = values
        return holes[..., ::2]
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.clone()


def lr_for(version: Version, rate: float) -> float:
    """The `lr` that takes first steps of that rate."""
    return rate * SCALE if version.lr_is_a_scale else rate


def lr_at(version: Version, group: GroupCase, step: int) -> float:
    """The `lr` of a group at a step, as a scheduler gives it."""
    return lr_for(version, group.options["lr"]) * (group.rates[step] if group.rates else 1.0)


def doubt_about(optimizer: EmoOptimizer, case: Case) -> float:
    """Below which share of its terms the sign of a sum is a matter of rounding."""
    half = [any(tensor.dtype.itemsize == 2 for tensor in group.tensors) for group in case.groups]
    if half[0] and "freshness" in optimizer._rule.memory():
        return 0.99  # how the terms are weighted depends on a small change of the norm: no sum of both signs is sure
    return 1e-2 if any(half) else 1e-3


def reference_group(version: Version, group: GroupCase, params: list[Tensor]) -> ReferenceGroup:
    o, lr, first_lr = group.options, lr_for(version, group.options["lr"]), lr_for(version, FIRST_LR)
    own = {name: value for name, value in group.rule_options.items() if name != "remember_true_norm"}
    beta1, beta2 = o["betas"]
    numbers = Options(lr, o["weight_decay"], beta1, beta2, o["eps"], first_lr=first_lr, **own)
    return ReferenceGroup(list(params), numbers, use_shadow=o["use_shadow"], maximize=o["maximize"])


@lru_cache(maxsize=4)
def inputs_of(case: Case) -> tuple[list[list[Tensor]], list[list[list[Tensor | None]]]]:
    """Parameters by group, and gradients by step and group. Nobody may change them."""
    generator = torch.Generator().manual_seed(case.seed)
    missing, numbers = set(case.missing), itertools.count()

    def random_values(tensor: TensorCase) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    def one_gradient(tensor: TensorCase) -> Tensor | None:
        values = random_values(tensor)
        # Not too small: float16 has no room for the squares of small gradients.
        values = values.sign() * (0.25 + values.abs())
        return None if next(numbers) in missing else values.to(tensor.dtype)

    params = [[random_values(tensor).to(tensor.dtype) for tensor in group.tensors] for group in case.groups]
    if case.first_group_is_zero:
        params[0] = [torch.zeros_like(param) for param in params[0]]
    gradients = [[[one_gradient(tensor) for tensor in group.tensors] for group in case.groups] for _ in case.losses]
    return params, gradients


@lru_cache(maxsize=4)
def run_of_reference(cls: type[EmoOptimizer], named: str, case: Case, doubt: float) -> ReferenceOptimizer:
    """The reference at the end of a case: one run of it for all implementations of a rule."""
    version = cls.versions[named]
    params, gradients = inputs_of(case)
    groups = [reference_group(version, group, row) for group, row in zip(case.groups, params, strict=True)]
    reference = ReferenceOptimizer(
        cls.__name__,
        version.name,
        groups,
        law=case.law,
        law_options=case.law_options,
        remember_true_norm=case.groups[0].rule_options.get("remember_true_norm", False),
        beta1=FIRST_BETAS[0],
        doubt=doubt,
    )
    for step, (loss, row) in enumerate(zip(case.losses, gradients, strict=True)):
        for group, of_case in zip(groups, case.groups, strict=True):
            group.options = replace(group.options, lr=lr_at(version, of_case, step))
        reference.step(loss, row)
    return reference


def compare(cls: type[EmoOptimizer], version: Version, implementation: str | None, case: Case) -> float:
    """Runs a case both ways; the share of the elements that could be compared."""
    starts, all_gradients = inputs_of(case)
    params = [
        [nn.Parameter(laid_out(p.clone(), tensor.layout)) for p, tensor in zip(row, group.tensors, strict=True)]
        for row, group in zip(starts, case.groups, strict=True)
    ]
    of_groups = [
        {"params": row, **group.options, "lr": lr_for(version, group.options["lr"]), **group.rule_options}
        for row, group in zip(params, case.groups, strict=True)
    ]
    options = {"lr": lr_for(version, FIRST_LR), "betas": FIRST_BETAS, "emo_law": case.law, **case.law_options}
    optimizer = make(cls, of_groups, implementation, version=version.name, **options)
    for step, (loss, gradients) in enumerate(zip(case.losses, all_gradients, strict=True)):
        for group, of_case, row in zip(optimizer.param_groups, case.groups, gradients, strict=True):
            if of_case.rates:
                group["lr"] = lr_at(version, of_case, step)
            for param, tensor, gradient in zip(group["params"], of_case.tensors, row, strict=True):
                layout = tensor.gradient_layout or tensor.layout
                param.grad = None if gradient is None else laid_out(gradient.clone(), layout)
        if loss is not None:
            optimizer.observe(loss)
        optimizer.step()
        assert_identical([[param.grad for param in row] for row in params], gradients)  # a step leaves them alone
    reference = run_of_reference(cls, version.name, case, doubt_about(optimizer, case))
    coarsest = max(TOLERANCE[tensor.dtype] for tensor in case.groups[0].tensors)
    least = coarsest if "norm" in optimizer._rule.memory() else 0.0  # a norm over the first group, and its rounding
    shares = []
    for group, row in zip(reference.groups, params, strict=True):
        for param, expected, state in zip(row, group.params, group.states, strict=True):
            keep = ~state.get("doubtful", torch.zeros_like(expected, dtype=torch.bool))
            tolerance = max(TOLERANCE[param.dtype], least)
            torch.testing.assert_close(param.detach().double()[keep], expected[keep], atol=tolerance, rtol=tolerance)
            shares += [keep.double().mean().item()] if keep.numel() else []
    return sum(shares) / max(len(shares), 1)
