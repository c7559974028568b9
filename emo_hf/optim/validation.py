"""What the constructors of the optimizers accept, and what they say to the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from emo_hf.optim.left_out import NONFINITE
from emo_hf.optim.precision.eight_bits import EIGHT_BITS

IMPLEMENTATION_OPTIONS = ("foreach", "fused", "native")
"""True chooses an implementation, False rules it out, None leaves the choice to the optimizer."""


def without_empty_groups(params: ParamsT) -> ParamsT:
    """Leave out groups without parameters: distributed checkpoints cannot be loaded with them."""
    if isinstance(params, (torch.Tensor, dict)):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
            f"{type(params).__name__}: put it into a list"
        )
    _refuse_sets(params)
    entries: list[Any] = list(params)
    if entries and all(isinstance(entry, dict) for entry in entries):
        for entry in entries:
            if not isinstance(entry["params"], torch.Tensor):
                _refuse_sets(entry["params"])
                entry["params"] = list(entry["params"])
        entries = [entry for entry in entries if isinstance(entry["params"], torch.Tensor) or entry["params"]]
    if not entries:
        raise ValueError("optimizer got an empty parameter list: give it parameters that require gradients")
    return entries


def _refuse_sets(params: Any) -> None:
    if isinstance(params, (set, frozenset)):
        raise TypeError("params must be ordered, e.g. a list: a set has another order in each run")


def _is_number(value: Any) -> bool:
    return isinstance(value, (Real, torch.Tensor)) and not isinstance(value, bool)


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of a parameter group, defaults filled in.

    Raises:
        ValueError: naming the option, its value and what is accepted.
    """
    for name in ("lr", "eps", "weight_decay"):
        value = options[name]
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        if not _is_number(value) or not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    betas = options["betas"]
    if isinstance(betas, str) or not isinstance(betas, Iterable) or len(tuple(betas)) != 2:
        raise ValueError(f"betas must be a pair (beta1, beta2), got {betas!r}")
    for index, beta in enumerate(betas, start=1):
        if not _is_number(beta) or not 0.0 <= beta < 1.0:
            raise ValueError(f"beta{index} must be in [0, 1), got {beta!r}")
    for name in ("use_shadow", "maximize"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name} must be True or False, got {options[name]!r}")
    if not isinstance(options["compensate"], bool) and options["compensate"] != EIGHT_BITS:
        raise ValueError(f"compensate must be True, False or {EIGHT_BITS!r}, got {options['compensate']!r}")
    if options["state"] not in (None, EIGHT_BITS):
        raise ValueError(f"state must be None (floating point) or {EIGHT_BITS!r}, got {options['state']!r}")
    if options["nonfinite"] not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(NONFINITE)}, got {options['nonfinite']!r}")
    for name in IMPLEMENTATION_OPTIONS:
        if options[name] not in (None, True, False):
            raise ValueError(f"{name} must be None (choose for me), True or False, got {options[name]!r}")
    wanted = [name for name in IMPLEMENTATION_OPTIONS if options[name]]
    if len(wanted) > 1:
        raise ValueError(f"{' and '.join(wanted)} cannot both be True: choose one, or leave both None")
