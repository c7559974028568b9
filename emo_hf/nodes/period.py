"""How often ranks or nodes meet."""

from __future__ import annotations


def check_period(every: object) -> None:
    """Refuse a period that is none.

    Args:
        every: steps between two averages or exchanges.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a whole number of steps, at least 1, got {every!r}")
