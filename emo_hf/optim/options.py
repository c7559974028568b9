"""The one table of options: name, default, what is accepted, help, and whether a parameter group may have its own.

Constructors, `--optim_args`, YAML files, `--help` and the pages read it. A law's and a rule's own options stand in the
law (`Law.options`) and the rule (`Rule.options`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from emo_hf.laws import read_law
from emo_hf.losses.rank_mean import GLOBAL, SYNC_MODES
from emo_hf.optim.average import KEPT
from emo_hf.optim.left_out import LEAVE_OUT, NONFINITE
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.reading import Option, boolean, boolean_or, boolean_or_auto, number, one_of, optional, read_value

IMPLEMENTATION_OPTIONS = ("foreach", "fused", "native")
"""True chooses an implementation, False rules it out, None leaves the choice to the optimizer."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name")
    return value


TABLE: dict[str, Option] = {
    "version": Option(None, optional(_text), "generation of the optimizer; None for its first one"),
    "use_shadow": Option(
        False, boolean, "keep a slow copy of the parameters and mix it in as the law says; one more tensor", True
    ),
    "maximize": Option(False, boolean, "climb instead of descend", True),
    "foreach": Option(None, boolean_or_auto, "the multi-tensor implementation: true, false, or the best one", True),
    "fused": Option(None, boolean_or_auto, "torch's fused Adam kernel, where the rule can use it", True),
    "native": Option(None, boolean_or_auto, "our kernels in C (on a GPU in Triton)", True),
    "state": Option(None, optional(one_of(EIGHT_BITS)), "8bit keeps averages of the gradient in 8 bits", True),
    "compensate": Option(
        False, boolean_or(EIGHT_BITS), "keep what rounding takes from bfloat16 and float16 parameters: in a tensor of "
        "their dtype, or in a byte (8bit, bfloat16 only)", True
    ),
    "nonfinite": Option(
        LEAVE_OUT, one_of(*NONFINITE), "NaN and infinite gradients: leave_out, their elements stay as they are; "
        "skip_step, no parameter moves in such a step, on any rank; propagate, what torch's optimizers do", True
    ),
    "emo_sync": Option(GLOBAL, one_of(*SYNC_MODES), "one emotion for all ranks of a job, or local: each its own"),
    "emo_law": Option(
        None, optional(read_law), "another law than the version's; none follows the loss, logs and changes nothing"
    ),
    "average_weights": Option(
        None, optional(boolean_or(*KEPT)), "keep an average of the weights, which is what is evaluated and saved: in "
        "float32, rounded (in the parameters' dtype, rounded at random), or cpu (in main memory); None as the law has "
        "it (settle: true, others: false)"
    ),
    "step_in_backward": Option(
        False, boolean, "move each parameter as soon as backward has its gradient, and free the gradient"
    ),
    "clip_value": Option(None, optional(number(0)), "what elements of gradients are clipped to then"),
}  # fmt: skip
"""The options of all emo optimizers, beside lr, betas, eps and weight_decay."""


def read_group(options: Mapping[str, Any], own: Mapping[str, Option]) -> dict[str, Any]:
    """The options of a parameter group, checked and brought to their types; others stay as they are.

    Args:
        options: lr, betas, eps, weight_decay and every option that a group has, defaults filled in.
        own: the rule's own options.

    Raises:
        ValueError: naming the option, its value and what is accepted.
    """
    read = dict(options)
    for name in ("lr", "eps", "weight_decay"):
        read[name] = _rate(name, options[name])
    betas = options["betas"]
    if isinstance(betas, (str, set, frozenset, dict)) or not isinstance(betas, Iterable) or len(tuple(betas)) != 2:
        raise ValueError(f"betas must be a pair (beta1, beta2), got {betas!r}")
    read["betas"] = tuple(_beta(index, beta) for index, beta in enumerate(betas, start=1))
    for name, option in {**TABLE, **own}.items():
        if name in options and (option.per_group or name in own):
            read[name] = read_value(name, options[name], option.read)
    wanted = [name for name in IMPLEMENTATION_OPTIONS if read[name]]
    if len(wanted) > 1:
        raise ValueError(f"{' and '.join(wanted)} cannot both be True: choose one, or leave both None")
    return read


def _rate(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    number = _as_float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r:.80}")
    return value if isinstance(value, torch.Tensor) else number


def _beta(index: int, value: Any) -> Any:
    number = _as_float(value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"beta{index} must be in [0, 1), got {value!r:.80}")
    return value if isinstance(value, torch.Tensor) else number


def _as_float(value: Any) -> float:
    """A number as a float, so that any checkpoint can hold it; NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, (Real, torch.Tensor)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # 10**400
        return math.inf


def without_empty_groups(params: ParamsT) -> ParamsT:
    """Leave out groups without parameters: distributed checkpoints cannot be loaded with them.

    Raises:
        TypeError: for a single tensor or group, or a set, which has another order in each run.
        ValueError: for no parameters at all, or a group without `params`.
    """
    if isinstance(params, (torch.Tensor, dict)):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
            f"{type(params).__name__}: put it into a list"
        )
    _refuse_sets(params)
    entries: list[Any] = list(params)
    if entries and all(isinstance(entry, dict) for entry in entries):
        for entry in entries:
            if "params" not in entry:
                raise ValueError(
                    f"a parameter group needs 'params', got one with {sorted(map(str, entry)) or 'nothing'}"
                )
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
