"""Every law against the series that the published emotions produce."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emo_hf.laws import LAWS
from tests.reference.figures import GOLDEN, Case, figures, intervals, label, versions

DESCRIPTION = {"losses", "losses_kind", "steps", "lr", "lrs", "weight_decays", "use_shadow", "phase", "params"}
STOPS = {"first_should_stop_step", "should_stop_intervals"}
STOP_SCALAR = {None: {}, "emonavi": {}, "emofact": {"stop_scalar": "sigma"}, "emolynx": {"stop_scalar": "sigma"}}
NAMES = {"medium": "ema_medium", "ratio": "ratio_history"}  # as they are called in the files


def felt(version: str, case: Case, options: dict[str, Any]) -> dict[str, list[Any]]:
    """Name as in the files → one value a step."""
    law = LAWS[version](**options)
    steps: list[dict[str, Any]] = []
    for loss in case["losses"]:
        decision, view = law.feel(loss), law.view()
        said = {"scalar": view.scalar, "ema_short": view.short, "ema_long": view.long, "drive": view.coefficient}
        said |= {"rate": decision.step_size(case.get("lr", 1.0)), "should_stop": view.should_stop}
        said |= {"early_scalar": math.tanh((view.long - view.short) / max(view.long, 1e-5))}
        steps.append(said | {NAMES.get(name, name): value for name, value in view.details.items()})
    series = {name: [step[name] for step in steps] for name in steps[0]}
    pairs = zip(series["scalar"], series["early_scalar"], strict=True)
    return series | {"medium_steps": [t for t, (scalar, early) in enumerate(pairs, start=1) if scalar != early]}


def cases() -> list[Any]:
    found = []
    for version in versions():
        # The law alone, or an optimizer that has its series beside its parameters.
        read = figures(version, "law" if (GOLDEN / version / "law.json").exists() else "emonavi")
        losses = {case["losses_kind"]: case["losses"] for case in read["cases"]}
        for denominator, of_one in {None: read["cases"], **read.get("variants", {})}.items():
            for case in of_one:
                name = "-".join([version, denominator or "published", label(case)])
                of_kind = losses[case["losses_kind"]]
                found.append(pytest.param(version, denominator, {"losses": of_kind} | case, id=name))
    return found


@pytest.mark.parametrize(("version", "denominator", "case"), cases())
def test_every_law_reproduces_the_published_series(version: str, denominator: str | None, case: Case) -> None:
    options = {} if denominator is None else {"denominator": denominator}
    series = felt(version, case, options)
    for name in case.keys() - DESCRIPTION - STOPS:
        assert series[name] == pytest.approx(case[name], rel=1e-9, abs=1e-12), name
    if "should_stop_intervals" in case:
        assert intervals(series["should_stop"]) == case["should_stop_intervals"]
    stop = case["first_should_stop_step"]
    for optimizer, step in (stop if isinstance(stop, dict) else {None: stop}).items():
        on = felt(version, case, options | STOP_SCALAR[optimizer])["should_stop"]
        assert (on.index(True) + 1 if True in on else None) == step


def test_there_are_figures_of_every_published_law_which_would_notice_another_denominator() -> None:
    assert set(versions()) == {name for name in LAWS if name.startswith("v")}
    for version in (name for name in versions() if "denominator" in LAWS[name].options):
        read = figures(version, "law")
        assert any(case["medium_steps"] for case in read["cases"])
        long, quieter = ([case["scalar"] for case in read["variants"][name]] for name in ("long", "quieter"))
        assert long != quieter
