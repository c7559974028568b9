"""Every implementation of every rule against the slow reference, on random shapes, layouts, dtypes and groups."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.laws import LAWS, law_names
from emo_hf.optim.family import FAMILY
from emo_hf.optim.version import Version
from tests.emo_cases import make
from tests.reference.comparison import Case, GroupCase, TensorCase, compare, lr_for
from tests.reference.laws import LAWS as REFERENCE_LAWS
from tests.reference.rules import RULES

LAYOUTS = ["plain", "transposed", "strided", "channels_last"]
SHAPES = [(), (1,), (7,), (0,), (3, 0), (1, 7), (7, 1), (4, 3), (33, 17), (2, 3, 4), (2, 3, 2, 2), (5, 1, 3, 3)]

OWN_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "decoupled_weight_decay": st.booleans(),
    "lynx_betas": st.sampled_from([(0.9, 0.99), (0.5, 0.8), (0.0, 0.9)]),
    "remember_true_norm": st.booleans(),
    "denominator": st.sampled_from(["published", "long", "quieter"]),
    "stop_scalar": st.sampled_from(["early", "sigma"]),
    "stopcoef": st.sampled_from([0.04, 5.0]),
}

Generation = tuple[type[EmoOptimizer], Version]
GENERATIONS: list[Generation] = [(cls, version) for cls in FAMILY.values() for version in cls.versions.values()]
WITH_REFERENCE = [(cls, version) for cls, version in GENERATIONS if (cls.__name__, version.name) in RULES]

pytestmark = pytest.mark.filterwarnings("ignore:.*(without a loss|around or below zero):RuntimeWarning")


def of_each_rule(generations: list[Generation]) -> list[Generation]:
    """One generation, the first, for each update rule."""
    return list({version.rule: (cls, version) for cls, version in reversed(generations)}.values())


def parametrized(generations: list[Generation]) -> pytest.MarkDecorator:
    """A test for every implementation of some generations, but that for GPUs, which is torch's without one."""
    found = [
        (cls, version, name)
        for cls, version in generations
        for name in version.rule.implementations
        if name != "triton"
    ]
    ids = [f"{cls.__name__}-{version.name}-{name}" for cls, version, name in found]
    return pytest.mark.parametrize(("cls", "version", "implementation"), found, ids=ids)


each_implementation = parametrized(of_each_rule(GENERATIONS))


def tensor_cases(dtypes: list[torch.dtype]) -> st.SearchStrategy[TensorCase]:
    return st.builds(
        TensorCase,
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(LAYOUTS),
        gradient_layout=st.sampled_from([None, *LAYOUTS]),
    )


def option_sets() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "lr": st.sampled_from([1e-2, 2e-2, 3e-3, 0.0]),
            "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
            "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.99), (0.95, 0.9), (0.8, 0.98)]),
            "eps": st.sampled_from([1e-8, 1e-4]),
            "use_shadow": st.booleans(),
            "maximize": st.booleans(),
        }
    )


def own_options(names: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: OWN_OPTIONS[name] for name in names if name in OWN_OPTIONS})


def cases(version: Version, dtypes: list[torch.dtype]) -> st.SearchStrategy[Case]:
    group = st.builds(
        GroupCase,
        tensors=st.lists(tensor_cases(dtypes), min_size=1, max_size=4),
        options=option_sets(),
        rule_options=own_options(version.rule.options),
    )
    loss = st.none() | st.sampled_from([2.0, 1.9, 1.7, 1.5, 3.0, 0.7, 9.0, 0.0, -1.0, float("nan")])
    return st.builds(
        Case,
        groups=st.lists(group, min_size=1, max_size=3),
        losses=st.lists(loss, min_size=1, max_size=6),
        seed=st.integers(0, 2**16),
        missing=st.lists(st.integers(0, 20), max_size=4),
        law_options=own_options(LAWS[version.law].options),
    )


EXACT, LOW = [torch.float32, torch.float64], [torch.bfloat16, torch.float16, torch.float32]


@parametrized(of_each_rule(WITH_REFERENCE))
@settings(max_examples=60)
@given(data=st.data())
def test_every_implementation_agrees_with_the_reference_to_rounding_or_as_far_as_half_precision_reaches(
    cls: type[EmoOptimizer], version: Version, implementation: str, data: st.DataObject
) -> None:
    compare(cls, version, implementation, data.draw(cases(version, data.draw(st.sampled_from([EXACT, LOW])))))


STEPS = 48
SOME_SHAPES = [(), (5,), (4, 3), (2, 3, 2, 2), (1, 7), (0,), (33, 17)]


@cache
def long_losses() -> list[float | None]:
    """Leaps, slopes, waves and calm: every branch of every law; and steps without a usable loss."""
    waves = [0.9 + 0.22 * math.sin(0.6 * t) + 0.05 * math.sin(1.1 * t) for t in range(20)]
    leaps = [3.0, 2.2, 1.4, 1.3, 9.0, 1.2, 0.5, 0.3, 0.9, 0.85]
    found: list[float | None] = [*waves, *leaps, *[0.02 + 0.001 * math.sin(0.7 * t) for t in range(STEPS - 30)]]
    found[4], found[23] = None, float("nan")
    return found


def long_case(version: Version, dtype: torch.dtype, own: dict[str, Any]) -> Case:
    tensors = [TensorCase(shape, dtype) for shape in SOME_SHAPES]
    common = {"betas": (0.9, 0.99), "eps": 1e-8, "lr": 0.003}
    rule_options = {name: value for name, value in own.items() if name in version.rule.options}
    groups = [
        GroupCase(
            tensors,
            common | {"weight_decay": 0.1, "use_shadow": False, "maximize": False},
            rule_options,
            rates=[0.0 if 8 <= t < 10 else min(1.0, 0.25 * (t + 1)) for t in range(STEPS)],
        ),
        GroupCase(
            tensors,
            common | {"weight_decay": 0.0, "use_shadow": True, "maximize": True},
            rule_options | ({"lynx_betas": (0.5, 0.8)} if "lynx_betas" in version.rule.options else {}),
        ),
        GroupCase(
            tensors[1:5],
            common | {"weight_decay": 0.3, "use_shadow": True, "maximize": False, "betas": (0.7, 0.999)},
            rule_options,
        ),
    ]
    count = sum(len(group.tensors) for group in groups)
    missing = [t * count + tensor for t in range(STEPS) for tensor in range(count) if (3 * t + 7 * tensor) % 11 == 0]
    late = [t * count + 2 for t in range(6)]  # a matrix whose first gradient comes late
    law_options = {name: value for name, value in own.items() if name in LAWS[version.law].options}
    return Case(groups, long_losses(), seed=7, missing=missing + late, law_options=law_options)


OWN_VALUES: dict[str, list[Any]] = {
    "decoupled_weight_decay": [True],
    "remember_true_norm": [True],
    "lynx_betas": [(0.0, 0.9)],
    "denominator": ["long", "quieter"],
    "stopcoef": [5.0],
}


def long_runs() -> list[Any]:
    """Every implementation of every rule, and by that which is chosen every generation, option and law."""
    runs: dict[str, tuple[Any, ...]] = {}
    for cls, version in WITH_REFERENCE:
        name, first = f"{cls.__name__}-{version.name}", (cls, version) in of_each_rule(WITH_REFERENCE)
        case = long_case(version, torch.float64, {})
        runs[name] = (cls, version, None, long_case(version, torch.float32, {}))  # which the kernels move
        for option in {**version.rule.options, **LAWS[version.law].options}:
            for value in OWN_VALUES.get(option, []):
                own = long_case(version, torch.float64, {option: value})
                runs[f"{name}-{option}-{value}"] = (cls, version, None, own)
        for implementation in version.rule.implementations if first else ():
            runs[f"{name}-{implementation}"] = (cls, version, implementation, case)
            if version.rule.reads_group:  # as LoRA's B is; it must not be pulled back to nothing
                zero = replace(case, first_group_is_zero=True, losses=case.losses[:16])
                runs[f"{name}-{implementation}-zero"] = (cls, version, implementation, zero)
        others = [law for law in law_names() if law != version.law and (law in REFERENCE_LAWS or law == "none")]
        for law in (["none"] if version.rule.reads_scalar else others) if first else ():
            runs[f"{name}-{law}"] = (cls, version, None, replace(case, law=law, losses=case.losses[14:32]))
    return [pytest.param(*run, id=name) for name, run in runs.items()]


@pytest.mark.parametrize(("cls", "version", "implementation", "case"), long_runs())
def test_every_implementation_option_and_law_agrees_with_the_reference_over_many_steps(
    cls: type[EmoOptimizer], version: Version, implementation: str | None, case: Case
) -> None:
    """Several groups with schedules, shapes of all dims, gaps in the gradients, shadow, ascent, decay or none."""
    assert compare(cls, version, implementation, case) > 0.75  # in so many elements at least


@parametrized(of_each_rule([(cls, version) for cls, version in GENERATIONS if not version.lr_is_a_scale]))
def test_a_coefficient_of_exactly_zero_leaves_only_the_weight_decay(
    cls: type[EmoOptimizer], version: Version, implementation: str
) -> None:
    for weight_decay, losses in ((0.5, (1.0, 1e9)), (0.0, (-1.0, -5e9))):  # so large a change that σ is exactly 1
        param = nn.Parameter(torch.ones(3, 2))
        optimizer = make(cls, [param], implementation, version=version.name, lr=0.1, weight_decay=weight_decay)
        param.grad = torch.full((3, 2), 3.0)
        for loss in losses:
            before = param.detach().clone()
            optimizer.observe(loss)
            optimizer.step()
        assert optimizer.emotion.coefficient == 0.0
        torch.testing.assert_close(param.detach(), before * (1 - 0.1 * weight_decay))


@each_implementation
def test_a_rate_of_zero_moves_nothing_and_no_gradient_is_no_step_and_no_state(
    cls: type[EmoOptimizer], version: Version, implementation: str
) -> None:
    params = [nn.Parameter(torch.full(shape, 0.5)) for shape in [(3, 2), (4,)]]
    idle = nn.Parameter(torch.ones(3))
    options = {"version": version.name, "lr": lr_for(version, 0.01), "weight_decay": 0.5}
    optimizer = make(cls, [idle, *params], implementation, **options)
    for step, loss in enumerate([1.0, 1.1, 0.7, 0.9]):
        optimizer.param_groups[0]["lr"] = lr_for(version, 0.0 if step % 2 else 0.01)
        for param in params:
            param.grad = torch.full_like(param, 0.3)
        before = [param.detach().clone() for param in params]
        optimizer.observe(loss)
        optimizer.step()
        assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [step % 2 == 1] * 2
    assert list(optimizer.state) == params
    if not version.rule.reads_group:  # others pull a whole group
        assert torch.equal(idle.detach(), torch.ones(3))


DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32]


@each_implementation
@pytest.mark.parametrize("gradient", [0.0, 0.5])
def test_parameters_of_different_dtypes_share_a_group_and_gradients_of_zero_leave_them_finite(
    cls: type[EmoOptimizer], version: Version, implementation: str, gradient: float
) -> None:
    """As LoRA's A has them at the first step, because B starts at zero."""
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for dtype in DTYPES for shape in ((2, 3), (4,))]
    optimizer = make(cls, params, implementation, version=version.name, lr=lr_for(version, 0.01))
    for loss in (1.0, 0.9, 2.0, 1.1) if gradient == 0.0 else (1.0,):
        for param in params:
            param.grad = torch.full_like(param, gradient)
        optimizer.observe(loss)
        optimizer.step()
    assert [param.dtype for param in params] == [dtype for dtype in DTYPES for _ in range(2)]
    for i, param in enumerate(params):
        like = torch.ones(param.shape).double() if gradient == 0.0 else params[4 + i % 2].detach()
        torch.testing.assert_close(param.detach().double(), like, atol=1e-2, rtol=0.0)
        assert gradient == 0.0 or not torch.equal(param, torch.ones_like(param))


def test_bias_is_corrected_as_adam_does_under_a_large_eps_too() -> None:
    ours, theirs = ([nn.Parameter(torch.full((3, 2), 0.5))] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 0.1}
    optimizer, adamw = EmoNavi(ours, **options, bias_correction=True, emo_law="none"), AdamW(theirs, **options)
    for step in range(4):
        for param in (*ours, *theirs):
            param.grad = torch.linspace(-0.2, 0.2 + step, 6).view(3, 2)
        optimizer.observe(1.0)
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(ours, theirs)
