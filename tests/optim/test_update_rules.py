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

from emo_hf import EmoOptimizer
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

GENERATIONS = [(cls, version) for cls in FAMILY.values() for version in cls.versions.values()]
WITH_REFERENCE = [(cls, version) for cls, version in GENERATIONS if (cls.__name__, version.name) in RULES]
OF_EACH_RULE = list({version.rule: (cls, version) for cls, version in reversed(WITH_REFERENCE)}.values())


def parametrized(generations: list[tuple[type[EmoOptimizer], Version]]) -> pytest.MarkDecorator:
    """A test for every implementation of some generations."""
    found = [(cls, version, name) for cls, version in generations for name in version.rule.implementations]
    ids = [f"{cls.__name__}-{version.name}-{name}" for cls, version, name in found]
    return pytest.mark.parametrize(("cls", "version", "implementation"), found, ids=ids)


each_implementation = parametrized(GENERATIONS)


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


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@parametrized(OF_EACH_RULE)
@settings(max_examples=60)
@given(data=st.data())
def test_every_implementation_agrees_with_the_reference(
    cls: type[EmoOptimizer], version: Version, implementation: str, data: st.DataObject
) -> None:
    compare(cls, version, implementation, data.draw(cases(version, [torch.float32, torch.float64])))


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@parametrized(OF_EACH_RULE)
@settings(max_examples=40)
@given(data=st.data())
def test_every_implementation_agrees_with_the_reference_as_far_as_half_precision_reaches(
    cls: type[EmoOptimizer], version: Version, implementation: str, data: st.DataObject
) -> None:
    compare(cls, version, implementation, data.draw(cases(version, [torch.bfloat16, torch.float16, torch.float32])))


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


def sets_of_own_options(version: Version) -> list[dict[str, Any]]:
    """No option given, and each value of each option that a generation has of its own."""
    values = {
        "decoupled_weight_decay": [True],
        "remember_true_norm": [True],
        "lynx_betas": [(0.0, 0.9)],
        "denominator": ["long", "quieter"],
        "stopcoef": [5.0],
    }
    names = {**version.rule.options, **LAWS[version.law].options}
    return [{}, *({name: value} for name in names for value in values.get(name, []))]


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@parametrized(WITH_REFERENCE)
def test_every_generation_agrees_with_the_reference_over_many_steps(
    cls: type[EmoOptimizer], version: Version, implementation: str, dtype: torch.dtype
) -> None:
    """Several groups with schedules, shapes of all dims, gaps in the gradients, shadow, ascent, decay or none."""
    assert compare(cls, version, implementation, long_case(version, dtype, {})) > 0.75


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@pytest.mark.parametrize(
    ("cls", "version", "own"),
    [
        pytest.param(cls, version, own, id="-".join([cls.__name__, version.name, *map(str, *own.items())]))
        for cls, version in WITH_REFERENCE
        for own in sets_of_own_options(version)[1:]
    ],
)
def test_every_option_of_a_generation_does_what_the_reference_does(
    cls: type[EmoOptimizer], version: Version, own: dict[str, Any]
) -> None:
    assert compare(cls, version, None, long_case(version, torch.float64, own)) > 0.75


@pytest.mark.filterwarnings("ignore:.*without a loss:RuntimeWarning")
@parametrized(WITH_REFERENCE)
def test_a_first_group_that_starts_at_zero_is_moved_as_the_reference_moves_it(
    cls: type[EmoOptimizer], version: Version, implementation: str
) -> None:
    """As LoRA's B does; a rule that keeps the norm of the first group must not pull it back to nothing."""
    case = replace(long_case(version, torch.float64, {}), first_group_is_zero=True)
    assert compare(cls, version, implementation, replace(case, losses=case.losses[:16])) > 0.75


def laws_that_may_drive(version: Version) -> list[str]:
    names = [name for name in law_names() if name != version.law and (name in REFERENCE_LAWS or name == "none")]
    return ["none"] if version.rule.reads_scalar else names


@pytest.mark.filterwarnings("ignore:.*(without a loss|around or below zero):RuntimeWarning")
@pytest.mark.parametrize(
    ("cls", "version", "law"),
    [
        pytest.param(cls, version, law, id=f"{cls.__name__}-{version.name}-{law}")
        for cls, version in WITH_REFERENCE
        for law in laws_that_may_drive(version)
    ],
)
def test_any_law_may_drive_a_rule_that_does_not_read_the_scalar(
    cls: type[EmoOptimizer], version: Version, law: str
) -> None:
    case = replace(long_case(version, torch.float64, {}), law=law)
    short = replace(case, losses=case.losses[14:32])
    assert compare(cls, version, None, short) > 0.75


def rate_of(version: Version, rate: float) -> dict[str, Any]:
    """Options that make first steps of that rate."""
    return {"version": version.name, "lr": lr_for(version, rate)}


@parametrized([(cls, version) for cls, version in GENERATIONS if not version.lr_is_a_scale])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("losses", [(-1.0, -5e9), (1.0, 1e9)])
def test_a_coefficient_of_exactly_zero_leaves_only_the_weight_decay(
    cls: type[EmoOptimizer],
    version: Version,
    implementation: str,
    weight_decay: float,
    losses: tuple[float, float],
) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = make(cls, [param], implementation, version=version.name, lr=0.1, weight_decay=weight_decay)
    param.grad = torch.full((3, 2), 3.0)
    optimizer.observe(losses[0])
    optimizer.step()
    before = param.detach().clone()
    optimizer.observe(losses[1])  # so large a change that σ is exactly 1
    optimizer.step()
    assert optimizer.emotion.coefficient == 0.0
    torch.testing.assert_close(param.detach(), before * (1 - 0.1 * weight_decay))


@each_implementation
def test_a_learning_rate_of_zero_moves_nothing(cls: type[EmoOptimizer], version: Version, implementation: str) -> None:
    params = [nn.Parameter(torch.full(shape, 0.5)) for shape in [(3, 2), (4,)]]
    optimizer = make(cls, params, implementation, **rate_of(version, 0.01), weight_decay=0.5)
    for step, loss in enumerate([1.0, 1.1, 0.7, 0.9]):
        optimizer.param_groups[0]["lr"] = lr_for(version, 0.0 if step % 2 else 0.01)
        for param in params:
            param.grad = torch.full_like(param, 0.3)
        before = [param.detach().clone() for param in params]
        optimizer.observe(loss)
        optimizer.step()
        assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [step % 2 == 1] * 2


@each_implementation
def test_a_parameter_without_a_gradient_is_left_alone_and_gets_no_state(
    cls: type[EmoOptimizer], version: Version, implementation: str
) -> None:
    idle, moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    options = {"version": version.name, "weight_decay": 0.5, "use_shadow": True}
    optimizer = make(cls, [idle, moved], implementation, **options)
    moved.grad = torch.ones(3)
    optimizer.observe(1.0)
    optimizer.step()
    assert torch.equal(idle.detach(), torch.ones(3))
    assert not torch.equal(moved.detach(), torch.ones(3))
    assert list(optimizer.state) == [moved]


@each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_gradients_of_zero_leave_the_parameters_finite(
    cls: type[EmoOptimizer], version: Version, implementation: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """As LoRA's A has them at the first step, because B starts at zero."""
    param = nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = make(cls, [param], implementation, version=version.name)
    for loss in (1.0, 0.9, 2.0, 1.1):
        param.grad = torch.zeros_like(param)
        optimizer.observe(loss)
        optimizer.step()
    torch.testing.assert_close(param.detach().double(), torch.ones(shape).double() * (1 - 4e-5), atol=1e-2, rtol=0.0)


@each_implementation
def test_parameters_of_different_dtypes_may_share_a_group(
    cls: type[EmoOptimizer], version: Version, implementation: str
) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32]
    params = [nn.Parameter(torch.ones(2, 3, dtype=dtype)) for dtype in dtypes]
    optimizer = make(cls, params, implementation, **rate_of(version, 0.01))
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    optimizer.observe(1.0)
    optimizer.step()
    assert [param.dtype for param in params] == dtypes
    for param in params:
        torch.testing.assert_close(param.double(), params[2], atol=1e-2, rtol=0.0)
    assert all(not torch.equal(param, torch.ones_like(param)) for param in params)
