"""Every law, and the slow reference of it, against the series that the published emotions produce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emo_hf.laws import LAWS
from emo_hf.laws.v3_6 import ThreeAverages
from tests.reference import laws as reference
from tests.reference.figures import GOLDEN, Case, figures, intervals, label, versions

Series = dict[str, list[Any]]
"""Name as in the files → one value a step."""

DESCRIPTION = {"losses", "losses_kind", "steps", "lr", "lrs", "weight_decays", "use_shadow", "phase", "params"}
STOPS = {"first_should_stop_step", "should_stop_intervals"}
STOP_SCALAR = {"emonavi": "early", "emofact": "sigma", "emolynx": "sigma"}  # where a generation has two signals


def felt_by_the_law(version: str, losses: list[float], lr: float, options: dict[str, Any]) -> Series:
    law = LAWS[version](**options)
    steps: list[dict[str, Any]] = []
    for loss in losses:
        decision = law.feel(loss)
        view = law.view()
        details = {{"medium": "ema_medium", "ratio": "ratio_history"}.get(k, k): v for k, v in view.details.items()}
        own = {"early_scalar": law.early_scalar()} if isinstance(law, ThreeAverages) else {}
        steps.append(
            {
                "scalar": view.scalar,
                "ema_short": view.short,
                "ema_long": view.long,
                "drive": view.coefficient,
                "rate": decision.step_size(lr),
                "should_stop": view.should_stop,
                **details,
                **own,
            }
        )
    return as_series(steps)


def felt_by_the_reference(version: str, losses: list[float], lr: float, options: dict[str, Any]) -> Series:
    law = reference.LAWS[version](**options)
    steps: list[dict[str, Any]] = []
    for loss in losses:
        step = law.feel(loss)
        said = {"scalar": step.sigma, "ema_short": law.short, "ema_long": law.long, "drive": step.factor}
        said |= {"rate": step.rate(lr), "should_stop": law.should_stop}
        if isinstance(law, reference.V36):
            said |= {"ema_medium": law.medium, "early_scalar": law.early_scalar}
        if isinstance(law, reference.V39):
            now = law.rhythm
            said |= {"noise": now.noise, "distance": now.distance, "chain": now.chain, "ratio_history": now.ratio}
        steps.append(said)
    return as_series(steps)


def as_series(steps: list[dict[str, Any]]) -> Series:
    series = {name: [step[name] for step in steps] for name in steps[0]}
    if "early_scalar" in series:
        pairs = zip(series["scalar"], series["early_scalar"], strict=True)
        series["medium_steps"] = [t for t, (scalar, early) in enumerate(pairs, start=1) if scalar != early]
    return series


Felt = Callable[[str, "list[float]", float, "dict[str, Any]"], Series]
each_implementation = pytest.mark.parametrize("felt", [felt_by_the_law, felt_by_the_reference])


def law_file(version: str) -> str:
    """The law alone, or an optimizer that has its series beside its parameters."""
    return "law" if (GOLDEN / version / "law.json").exists() else "emonavi"


def cases() -> list[Any]:
    found: list[tuple[str, str | None, Case]] = []
    for version in versions():
        read = figures(version, law_file(version))
        found += [(version, None, case) for case in read["cases"]]
        for variant, of_variant in read.get("variants", {}).items():
            losses = {case["losses_kind"]: case["losses"] for case in read["cases"]}
            found += [(version, variant, case | {"losses": losses[case["losses_kind"]]}) for case in of_variant]
    return [pytest.param(*one, id="-".join([one[0], one[1] or "published", label(one[2])])) for one in found]


@each_implementation
@pytest.mark.parametrize(("version", "variant", "case"), cases())
def test_every_law_reproduces_the_published_series(felt: Felt, version: str, variant: str | None, case: Case) -> None:
    options = {} if variant is None else {"denominator": variant}
    series = felt(version, case["losses"], case.get("lr", 1.0), options)
    for name in case.keys() - DESCRIPTION - STOPS:
        assert series[name] == pytest.approx(case[name], rel=1e-9, abs=1e-12), name
    if "should_stop_intervals" in case:
        assert intervals(series["should_stop"]) == case["should_stop_intervals"]
    expected = case["first_should_stop_step"]
    by_optimizer = expected if isinstance(expected, dict) else {None: expected}
    for optimizer, step in by_optimizer.items():
        if optimizer is not None:
            stop_scalar = {"stop_scalar": STOP_SCALAR[optimizer]}
            series = felt(version, case["losses"], case.get("lr", 1.0), options | stop_scalar)
        assert first(series["should_stop"]) == step


def first(on: list[bool]) -> int | None:
    """The first step, counted from 1, in which something is on."""
    return on.index(True) + 1 if True in on else None


def test_there_are_figures_of_every_published_law() -> None:
    assert set(versions()) == {name for name in LAWS if name.startswith("v")}


@pytest.mark.parametrize("version", [version for version in versions() if "denominator" in LAWS[version].options])
def test_the_figures_would_notice_another_denominator(version: str) -> None:
    read = figures(version, "law")
    assert any(case["medium_steps"] for case in read["cases"])
    assert read["variants"].keys() == {"long", "quieter"}
    kinds = {name: [case["scalar"] for case in of_variant] for name, of_variant in read["variants"].items()}
    assert kinds["long"] != kinds["quieter"]
