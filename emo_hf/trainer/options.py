"""Every option that an emo optimizer takes beside the Trainer's own arguments, and how its text is read.

One table serves `--optim_args "key=value,…"`, `create_optimizer(..., key=value)` and the documentation.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_hf.laws.laws import law_options, read_law
from emo_hf.losses.rank_mean import SYNC_MODES
from emo_hf.optim.family import FAMILY
from emo_hf.optim.left_out import NONFINITE
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.reading import Reader, boolean, boolean_or, boolean_or_auto, number, one_of, read_value, whole_number
from emo_hf.trainer.param_groups import ROLES, GroupOptions

SELF_STOP_ACTIONS = ("off", "log", "save", "stop")


def _versions() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for cls in FAMILY.values() for name in cls.versions))


def _own_options() -> dict[str, Reader]:
    """The options of all laws and rules."""
    of_rules = (version.rule.options for cls in FAMILY.values() for version in cls.versions.values())
    every = {name: option for options in (law_options(), *of_rules) for name, option in options.items()}
    return {name: option.read for name, option in every.items()}


COMMON_OPTIONS: dict[str, Reader] = {
    "version": lambda value: one_of(*_versions())(value),
    "use_shadow": boolean,
    "maximize": boolean,
    "foreach": boolean_or_auto,
    "fused": boolean_or_auto,
    "native": boolean_or_auto,
    "state": one_of(EIGHT_BITS),
    "compensate": boolean_or(EIGHT_BITS),
    "nonfinite": one_of(*NONFINITE),
    "emo_sync": one_of(*SYNC_MODES),
    "emo_law": read_law,
    "step_in_backward": boolean,
    "clip_value": number(0),
    "beta1": number(0, below=1),
    "beta2": number(0, below=1),
    "eps": number(0),
}
"""The options of all optimizers."""


def optimizer_options() -> dict[str, Reader]:
    """What goes to the constructors of the optimizers; read anew each time, as laws and optimizers may be added."""
    return COMMON_OPTIONS | _own_options()


GROUP_OPTIONS: dict[str, Reader] = {
    f"{role}_{option}": number(0) for role in ROLES for option in ("lr", "lr_ratio", "weight_decay")
}
SELF_STOP_OPTIONS: dict[str, Reader] = {
    "self_stop": one_of(*SELF_STOP_ACTIONS),
    "self_stop_patience": whole_number(1),
    "self_stop_min_steps": whole_number(0),
}


def known_options() -> dict[str, Reader]:
    """All options."""
    return optimizer_options() | GROUP_OPTIONS | SELF_STOP_OPTIONS


FORMER_NAMES = {"compile": "native"}

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
    for former, present in FORMER_NAMES.items():
        if former in given:
            warnings.warn(f"the option {former} is called {present} now", FutureWarning, stacklevel=2)
    renamed = {FORMER_NAMES.get(key, key): value for key, value in given.items()}
    known = known_options()
    values = {key: _read(key, value, known) for key, value in renamed.items()}
    roles: dict[str, dict[str, Any]] = {}
    for role in ROLES:
        for option in ("lr", "lr_ratio", "weight_decay"):
            if f"{role}_{option}" in values:
                roles.setdefault(role, {})[option] = values[f"{role}_{option}"]
    self_stop = {key.removeprefix("self_stop_"): values[key] for key in SELF_STOP_OPTIONS if key in values}
    if "self_stop" in self_stop:
        self_stop["action"] = self_stop.pop("self_stop")
    return EmoOptions(
        optimizer={key: values[key] for key in optimizer_options() if key in values},
        roles={role: GroupOptions(**settings) for role, settings in roles.items()},
        self_stop=self_stop,
    )


def parse_optim_args(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Split `--optim_args` at commas and equals signs, as the Trainer does, but say what is wrong with it.

    Args:
        given: the text, or a mapping that holds the same.

    Raises:
        ValueError: for a part that is not `key=value`, or a key given twice.
    """
    if isinstance(given, Mapping):
        return dict(given)
    parsed: dict[str, Any] = {}
    text = given or ""
    for part in text.replace(" ", "").split(",") if text else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or "=" in value:
            hint = next((f" ({said})" for name, said in _ELSEWHERE.items() if f"{name}=" in text), "")
            raise ValueError(
                f"optim_args: {part!r} is not of the form key=value (in {given!r}){hint}; known keys: "
                f"{', '.join(known_options())}"
            )
        if key in parsed:
            raise ValueError(f"optim_args: {key} is given twice in {given!r}")
        parsed[key] = value
    return parsed


def _read(key: str, value: Any, known: Mapping[str, Reader]) -> Any:
    reader = known.get(key)
    if reader is None:
        close = difflib.get_close_matches(key, known, n=1)
        hint = _ELSEWHERE.get(key) or (f"did you mean {close[0]}?" if close else "")
        raise ValueError(f"unknown option {key!r}{f' ({hint})' if hint else ''}; known: {', '.join(known)}")
    return read_value(key, value, reader)
