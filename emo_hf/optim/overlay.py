"""Methods of one instance, laid over for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch.optim.optimizer import Optimizer


def give(optimizer: Optimizer, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Give an instance a method that its class does not have.

    Returns:
        What takes it away again.
    """
    setattr(optimizer, name, method)

    def take_away() -> None:
        if optimizer.__dict__.get(name) == method:
            delattr(optimizer, name)

    return take_away


def lay_over(optimizer: Optimizer, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Put `around(method, …)` in the place of an instance's method, which keeps its kind and signature.

    Returns:
        What takes it off again; where somebody has put another over it since, it stays below.
    """
    before = optimizer.__dict__.get(name)
    method = getattr(optimizer, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    def bound(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    ours: Any
    if isinstance(method, MethodType):  # torch's schedulers take step() apart by its __func__
        ours = MethodType(functools.wraps(method.__func__)(bound), optimizer)
    else:
        ours = functools.wraps(method)(call)
    setattr(optimizer, name, ours)

    def take_off() -> None:
        if optimizer.__dict__.get(name) is ours:
            if before is None:
                delattr(optimizer, name)
            else:
                setattr(optimizer, name, before)

    return take_off
