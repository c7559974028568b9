"""Every option that an emo optimizer takes beside the Trainer's own arguments, and how its text is read.

One table serves `--optim_args "key=value,…"`, `create_optimizer(..., key=value)` and the README.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_hf.emotion.laws import LAWS
from emo_hf.loss.rank_mean import SYNC_MODES
from emo_hf.trainer.param_groups import ROLES, GroupOptions

SELF_STOP_ACTIONS = ("off", "log", "save", "stop")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError("true or false")


def _boolean_or_auto(value: Any) -> bool | None:
    if value is None or (isinstance(value, str) and value.lower() in ("auto", "none")):
        return None
    try:
        return _boolean(value)
    except ValueError:
        raise ValueError("true, false or auto") from None


def _number(low: float, below: float = math.inf) -> Callable[[Any], float]:
    accepted = f"a number of at least {low:g}" + (f" and below {below:g}" if below < math.inf else "")

    def read(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number < below:
            raise ValueError(accepted)
        return number

    return read


def _whole_number(low: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = -1 if isinstance(value, (bool, float)) else int(value)
        except (TypeError, ValueError):
            number = -1
        if number < low:
            raise ValueError(f"a whole number of at least {low}")
        return number

    return read


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value in choices:
            return str(value)
        raise ValueError("one of " + ", ".join(choices))

    return read


OPTIMIZER_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "use_shadow": _boolean,
    "maximize": _boolean,
    "foreach": _boolean_or_auto,
    "fused": _boolean_or_auto,
    "compile": _boolean_or_auto,
    "compensate": _boolean,
    "emo_sync": _one_of(SYNC_MODES),
    "emo_law": _one_of(tuple(LAWS)),
    "beta1": _number(0, below=1),
    "beta2": _number(0, below=1),
    "eps": _number(0),
}
GROUP_OPTIONS: dict[str, Callable[[Any], Any]] = {
    f"{role}_{option}": _number(0) for role in ROLES for option in ("lr", "lr_ratio", "weight_decay")
}
SELF_STOP_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "self_stop": _one_of(SELF_STOP_ACTIONS),
    "self_stop_patience": _whole_number(1),
    "self_stop_min_steps": _whole_number(0),
}
OPTIONS = OPTIMIZER_OPTIONS | GROUP_OPTIONS | SELF_STOP_OPTIONS

_ELSEWHERE = {
    "lr": "the learning rate is --learning_rate",
    "learning_rate": "the learning rate is --learning_rate",
    "weight_decay": "the weight decay is --weight_decay",
    "betas": "give beta1 and beta2, or --adam_beta1 and --adam_beta2",
}


@dataclass(frozen=True, kw_only=True)
class EmoOptions:
    """The options, read and checked.

    Attributes:
        optimizer: those that go to the optimizer's constructor (`beta1`, `beta2` still apart).
        roles: learning rate and weight decay per role of a parameter, for `build_param_groups`.
        self_stop: those of the self-stop, without their prefix except for `self_stop` itself, which is `action`.
    """

    optimizer: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, GroupOptions] = field(default_factory=dict)
    self_stop: Mapping[str, Any] = field(default_factory=dict)


def read_options(given: Mapping[str, Any]) -> EmoOptions:
    """Check options and bring them to their types.

    Args:
        given: key → value, values as text or as the Python values that the text stands for.

    Raises:
        ValueError: for an unknown key (naming the known ones) or an unacceptable value (naming what is accepted).
    """
    values = {key: _read(key, value) for key, value in given.items()}
    roles: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        for option in ("lr", "lr_ratio", "weight_decay"):
            if f"{role}_{option}" in values:
                roles.setdefault(role, {})[option] = values[f"{role}_{option}"]
    self_stop = {key.removeprefix("self_stop_"): values[key] for key in SELF_STOP_OPTIONS if key in values}
    if "self_stop" in self_stop:
        self_stop["action"] = self_stop.pop("self_stop")
    return EmoOptions(
        optimizer={key: values[key] for key in OPTIMIZER_OPTIONS if key in values},
        roles={role: GroupOptions(**settings) for role, settings in roles.items()},
        self_stop=self_stop,
    )


def parse_optim_args(text: str | None) -> dict[str, str]:
    """Split `--optim_args` at commas and equals signs, as the Trainer does, but say what is wrong with it.

    Raises:
        ValueError: for a part that is not `key=value`, or a key given twice.
    """
    parsed: dict[str, str] = {}
    for part in text.replace(" ", "").split(",") if text else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or "=" in value:
            raise ValueError(
                f"optim_args: {part!r} is not of the form key=value (in {text!r}); known keys: {', '.join(OPTIONS)}"
            )
        if key in parsed:
            raise ValueError(f"optim_args: {key} is given twice in {text!r}")
        parsed[key] = value
    return parsed


def _read(key: str, value: Any) -> Any:
    reader = OPTIONS.get(key)
    if reader is None:
        close = difflib.get_close_matches(key, OPTIONS, n=1)
        hint = _ELSEWHERE.get(key) or (f"did you mean {close[0]}?" if close else "")
        raise ValueError(f"unknown option {key!r}{f' ({hint})' if hint else ''}; known: {', '.join(OPTIONS)}")
    try:
        return reader(value)
    except ValueError as error:
        raise ValueError(f"option {key}={value!r} is not acceptable: it takes {error}") from None
