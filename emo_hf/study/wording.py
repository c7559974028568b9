"""How a report writes numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from emo_hf.study.statistics import Interval, Width

NOTHING = "–"


def amount(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def rate_text(rate: float) -> str:
    text = f"{rate:.3g}" if 1e-2 <= rate < 1e3 else f"{rate:.2e}"
    mantissa, _, exponent = text.partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if exponent else text


def mean_sd(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    text = f"{statistics.fmean(values):.4g}"
    return text + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def interval_text(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    if not math.isfinite(interval.low):
        return minus(f"{100 * interval.mean:+.2f} %")
    return minus(f"{100 * interval.mean:+.2f} % [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]")


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    return minus(f"{100 * share:+.1f} %") if math.isfinite(share) else "diverged"


def minus(text: str) -> str:
    """A text of numbers with true minus signs."""
    return text.replace("-", "−")


def width_text(width: Width | None) -> str:
    if width is None:
        return "none"
    beyond = "≥ " if width.open_low or width.open_high else ""
    return f"{beyond}{width.decades:.2f} ({rate_text(width.low)} to {rate_text(width.high)})"
