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
    "version": Option(None, optional(_text), "generation of the optimizer; by default its first one"),
    "use_shadow": Option(
        False, boolean, "keep a slow copy of each parameter (one more tensor), and mix it in as the law says", True
    ),
    "maximize": Option(False, boolean, "maximize instead of minimize", True),
    "foreach": Option(None, boolean_or_auto, "use torch's multi-tensor operators", True),
    "fused": Option(None, boolean_or_auto, "use torch's fused Adam kernel, where the rule can", True),
    "native": Option(None, boolean_or_auto, "use this package's kernels, in C or, on a GPU, in Triton", True),
    "state": Option(None, optional(one_of(EIGHT_BITS)), "8bit: keep the averages of the gradient in 8 bits", True),
    "compensate": Option(
        False, boolean_or(EIGHT_BITS), "keep what rounding takes from bfloat16 and float16 parameters: true, in a "
        "tensor of their dtype; 8bit, in a byte (bfloat16 only)", True
    ),
    "nonfinite": Option(
        LEAVE_OUT, one_of(*NONFINITE), "NaN and infinite gradients: leave_out, the elements that have one do not "
        "move; skip_step, no parameter moves in that step, on any rank; propagate, as torch's optimizers do", True
    ),
    "emo_sync": Option(GLOBAL, one_of(*SYNC_MODES), "the law takes in the mean over the ranks; local: its rank's"),
    "emo_law": Option(
        None, optional(read_law), "a law in the place of the version's own; none only logs, and changes nothing"
    ),
    "average_weights": Option(
        None, optional(boolean_or(*KEPT)), "keep an average of the weights, and evaluate and save it: true, in "
        "float32; rounded, in the parameters' dtype, rounded at random; cpu, in main memory. By default true with the "
        "law settle, else false"
    ),
    "step_in_backward": Option(
        False, boolean, "move each parameter as soon as backward has its gradient, and free the gradient"
    ),
    "clip_value": Option(
        None, optional(number(0, above=True)), "with step_in_backward: clip elements of gradients to ± this"
    ),
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
    """
    if isinstance(params, (torch.Tensor, dict, set, frozenset)):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
            f"{type(params).__name__}: put it into a list, in an order that is the same in each run"
        )
    entries: list[Any] = list(params)
    for entry in entries:
        if isinstance(entry, dict) and "params" in entry:
            entry["params"] = as_list(entry["params"])
    return [entry for entry in entries if not isinstance(entry, dict) or entry.get("params") != []]


def as_list(params: Any) -> Any:
    """The parameters of a group as a list, but for sets, which torch refuses."""
    if isinstance(params, torch.Tensor):
        return [params]
    return params if isinstance(params, (set, frozenset)) else list(params)
