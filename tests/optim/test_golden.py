"""The figures that the published optimizers produce, reproduced by every implementation of every generation.

A file has `cases`, all of which are reproduced, by default or with the options that a case names; `repaired_cases`,
which are those of EmoTion with its remembered norm put right; and `quirk_cases`, which are not reproduced: they need
an emotion for each parameter instead of one for all (v3.0, where parameters have no gradients), or learning rates of
groups that are ignored (v3.9).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoOptimizer
from emo_hf.laws import LAWS
from emo_hf.optim.family import FAMILY
from emo_hf.optim.version import Version
from tests.emo_cases import make
from tests.reference.figures import (
    FIRST_GROUP,
    GOLDEN,
    Case,
    dtype_of,
    figures,
    gradient,
    has_gradient,
    initial,
    intervals,
    label,
)
from tests.reference.optimizer import Options, ReferenceGroup, ReferenceOptimizer

EXACT = 1e-9  # scalars, averages, rates, and everything in float64


def tolerance_of_parameters(version: Version, implementation: str, case: Case) -> float:
    """A kernel that is handed lr·wd computes 1 − lr·wd in float32, where the published code multiplies twice."""
    if dtype_of(case) is torch.float64:
        return EXACT
    if version.name == "v3.1":
        return 2e-6 if implementation in ("single", "foreach") else 4e-6
    return 5e-6


INPUTS = {"losses", "losses_kind", "steps", "lr", "lrs", "weight_decays", "use_shadow", "phase", "gap", "dtype"}
INPUTS |= {"options", "published_error"}
SERIES = {"scalar", "ema_short", "ema_long", "drive", "rate", "freshness", "norm"}
RUNS = {"should_stop_intervals", "rescaled_steps", "medium_steps"}
STOPS = {"first_should_stop_step", "first_should_stop_step_one_scalar_per_step"}

Generation = tuple[type[EmoOptimizer], Version]
GENERATIONS: list[Generation] = [
    (cls, version)
    for name, cls in FAMILY.items()
    for version in cls.versions.values()
    if (GOLDEN / version.name / f"{name}.json").exists()
]


def figures_of(cls: type[EmoOptimizer], version: Version) -> dict[str, Any]:
    return figures(version.name, cls.__name__.lower())


def reproducible(cls: type[EmoOptimizer], version: Version) -> list[Case]:
    read = figures_of(cls, version)
    return [*read["cases"], *read.get("repaired_cases", [])]


def cases() -> list[Any]:
    """The first case of each file with every implementation, the others with the plainest and the fastest."""
    return [
        pytest.param(cls, version, name, case, id="-".join([cls.__name__, version.name, name, label(case)]))
        for cls, version in GENERATIONS
        for number, case in enumerate(reproducible(cls, version))
        for name in version.rule.implementations
        if name in ("single", "native") or (number == 0 and name != "triton")  # which is torch's without a GPU
    ]


def start(cls: type[EmoOptimizer], version: Version, case: Case) -> list[nn.Parameter]:
    """The five parameters before the first step."""
    shapes = figures_of(cls, version)["shapes"]
    return [nn.Parameter(initial(tuple(shape), k, case["phase"]).to(dtype_of(case))) for k, shape in enumerate(shapes)]


def in_groups(things: list[Any]) -> tuple[list[Any], list[Any]]:
    return things[:FIRST_GROUP], things[FIRST_GROUP:]


def gradients(params: list[nn.Parameter], case: Case, t: int) -> list[torch.Tensor | None]:
    return [
        gradient(tuple(param.shape), k, t, case["phase"]).to(param.dtype) if has_gradient(case, k, t) else None
        for k, param in enumerate(params)
    ]


def build(
    cls: type[EmoOptimizer], version: Version, implementation: str, case: Case
) -> tuple[EmoOptimizer, list[nn.Parameter]]:
    read = figures_of(cls, version)
    params = start(cls, version, case)
    groups = [
        {"params": members, "lr": lr, "weight_decay": decay}
        for members, lr, decay in zip(in_groups(params), case["lrs"], case["weight_decays"], strict=True)
    ]
    options = {"betas": tuple(read["betas"]), "eps": read["eps"], "use_shadow": case["use_shadow"]}
    options |= {name: read[name] for name in ("lynx_betas", "stopcoef") if name in read}
    options |= {"lr": case["lr"]} if "lr" in case else {}
    options |= case.get("options", {})
    return make(cls, groups, implementation, version=version.name, **options), params


def shown(optimizer: EmoOptimizer, before: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer shows after a step, under the names that the files have for it."""
    emotion, memory = optimizer.emotion, optimizer._rule.memory()
    by_the_long_average = math.tanh((emotion.long - emotion.short) / max(emotion.long, 1e-5))
    return memory | {
        "scalar": emotion.scalar,
        "ema_short": emotion.short,
        "ema_long": emotion.long,
        "drive": emotion.coefficient,
        "rates": list(optimizer.effective_lr.values()),
        "rate": next(iter(optimizer.effective_lr.values())),
        "should_stop_intervals": emotion.should_stop,
        "medium_steps": emotion.scalar != by_the_long_average,
        "rescaled_steps": bool(before.get("norm")) and before.get("counter", 56) <= 55,
    }


@pytest.mark.parametrize(("cls", "version", "implementation", "case"), cases())
def test_every_implementation_reproduces_the_published_figures(
    cls: type[EmoOptimizer], version: Version, implementation: str, case: Case
) -> None:
    optimizer, params = build(cls, version, implementation, case)
    tolerance = tolerance_of_parameters(version, implementation, case)
    steps = []
    for t, loss in enumerate(case["losses"]):
        for param, grad in zip(params, gradients(params, case, t), strict=True):
            param.grad = grad
        optimizer.observe(loss)
        before = optimizer._rule.memory()
        optimizer.step()
        steps.append(shown(optimizer, before))
        for param, expected in zip(params, case["params"].get(str(t + 1), []), strict=False):
            wanted = torch.tensor(expected, dtype=param.dtype)
            torch.testing.assert_close(param.detach().flatten(), wanted, atol=tolerance, rtol=0.0)
    assert not case.keys() - INPUTS - SERIES - RUNS - STOPS - {"params"}
    single = dtype_of(case) is torch.float32
    relative = {"norm": 2e-6 if single else EXACT, "rate": EXACT}
    absolute = {"freshness": 2e-4 if single else EXACT, "rate": 1e-18, "norm": 0.0}
    for name in SERIES & case.keys():
        expected = pytest.approx(case[name], abs=absolute.get(name, EXACT), rel=relative.get(name, EXACT))
        assert [step[name] for step in steps] == expected, name
    for step, drive in zip(steps, case.get("drive", []), strict=False):
        assert step["rates"] == pytest.approx([lr * drive for lr in case["lrs"]], rel=EXACT, abs=EXACT)
    assert "rate" not in case or all(len(set(step["rates"])) == 1 for step in steps)  # these groups have one scale
    for name in RUNS & case.keys():
        on = [step[name] for step in steps]
        found = [t for t, is_on in enumerate(on, start=1) if is_on] if name == "medium_steps" else intervals(on)
        assert found == case[name], name
    (stop,) = [case[name] for name in sorted(STOPS & case.keys())[-1:]]  # with one scalar a step, where both are there
    stops = [t for t, step in enumerate(steps, start=1) if step["should_stop_intervals"]]
    assert next(iter(stops), None) == stop
    assert [group["lr"] for group in optimizer.param_groups] == case["lrs"]


each_generation = pytest.mark.parametrize(
    ("cls", "version"), GENERATIONS, ids=[f"{cls.__name__}-{version.name}" for cls, version in GENERATIONS]
)


@each_generation
def test_the_slow_reference_reproduces_the_published_figures_too(cls: type[EmoOptimizer], version: Version) -> None:
    read = figures_of(cls, version)
    for case in reproducible(cls, version):
        own = case.get("options", {})
        params = start(cls, version, case)
        groups = [
            ReferenceGroup(
                members,
                Options(
                    lr=lr,
                    wd=decay,
                    beta1=read["betas"][0],
                    beta2=read["betas"][1],
                    eps=read["eps"],
                    lynx_betas=tuple(read.get("lynx_betas", ())),
                    decoupled_weight_decay=own.get("decoupled_weight_decay", False),
                    first_lr=own.get("lr", math.nan),
                ),
                case["use_shadow"],
            )
            for members, lr, decay in zip(in_groups(params), case["lrs"], case["weight_decays"], strict=True)
        ]
        true_norm = own.get("remember_true_norm", False)
        reference = ReferenceOptimizer(cls.__name__, version.name, groups, remember_true_norm=true_norm)
        stops = []
        for t, loss in enumerate(case["losses"]):
            row = gradients(params, case, t)
            reference.step(loss, list(in_groups(row)))
            stops.append(reference.emotion.should_stop)
            now = [*groups[0].params, *groups[1].params]
            for param, expected in zip(now, case["params"].get(str(t + 1), []), strict=False):
                wanted = torch.tensor(expected, dtype=torch.float64)
                torch.testing.assert_close(param.flatten(), wanted, atol=5e-6, rtol=0.0)
        assert reference.emotion.scalars == pytest.approx(case["scalar"], abs=EXACT)
        if "should_stop_intervals" in case:
            assert intervals(stops) == case["should_stop_intervals"]


def test_every_file_of_figures_belongs_to_an_optimizer_of_the_family() -> None:
    files = {(path.parent.name, path.stem) for path in GOLDEN.glob("*/*.json")} - {
        (version.name, "law") for _, version in GENERATIONS
    }
    assert files == {(version.name, cls.__name__.lower()) for cls, version in GENERATIONS}


@each_generation
def test_the_defaults_are_the_published_ones_and_the_figures_cover_shadow_and_stop_signal(
    cls: type[EmoOptimizer], version: Version
) -> None:
    read = figures_of(cls, version)
    optimizer = cls([nn.Parameter(torch.ones(2))], version=version.name)
    defaults = optimizer.defaults
    assert list(defaults["betas"]) == list(version.betas) == read["betas"]
    assert defaults["eps"] == read["eps"]
    assert defaults["lr"] == version.lr == read.get("lr", 1e-3)
    assert defaults["weight_decay"] == read.get("weight_decay", 0.01)
    if "lynx_betas" in read:
        assert list(defaults["lynx_betas"]) == read["lynx_betas"]
    if "stopcoef" in read:
        assert LAWS[version.law].options["stopcoef"].default == read["stopcoef"]
    assert {case["use_shadow"] for case in read["cases"]} == {True, False}
    assert any(case["first_should_stop_step"] for case in read["cases"])
    assert all(len(case["params"]) >= 4 for case in read["cases"])
