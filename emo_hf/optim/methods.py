"""Methods of an instance that are put around its own, and taken off again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any


def around(method: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """`run(method, …)`, of the kind and the signature of the method."""
    if not isinstance(method, MethodType):
        return functools.wraps(method)(functools.partial(run, method))

    def bound(_: Any, *args: Any, **kwargs: Any) -> Any:
        return run(method, *args, **kwargs)

    # torch's schedulers take step() apart by its __func__.
    return MethodType(functools.wraps(method.__func__)(bound), method.__self__)


def put_on(instance: Any, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Give an instance a method, or another in its place.

    Returns:
        What takes it off again; where somebody has put another over it since, it stays below.
    """
    before = instance.__dict__.get(name)
    setattr(instance, name, method)

    def take_off() -> None:
        if instance.__dict__.get(name) is method:
            if before is None:
                delattr(instance, name)
            else:
                setattr(instance, name, before)

    return take_off
