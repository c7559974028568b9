"""`optim_args` and the keywords of `create_optimizer`, read once into one object.

Options of the optimizers, of their laws and rules come from their own tables; here are those of the Trainer's side.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from emo_hf.laws import law_options
from emo_hf.optim.family import FAMILY
from emo_hf.optim.options import TABLE
from emo_hf.reading import Option, number, one_of, read_value
from emo_hf.trainer.param_groups import ROLES, GroupOptions
from emo_hf.trainer.self_stop import OPTIONS as SELF_STOP_OPTIONS

SHORT, ALL = "short", "all"
_OF_GROUP = ("lr", "lr_ratio", "weight_decay")

GROUP_OPTIONS: dict[str, Option] = {
    f"{role}_{option}": Option(None, number(0), f"{option} of parameters with the role {role}")
    for role in ROLES
    for option in _OF_GROUP
}
CALLBACK_OPTIONS: dict[str, Option] = {
    **SELF_STOP_OPTIONS,
    "console": Option(SHORT, one_of(SHORT, ALL), "print the main metrics, or all"),
}
"""What `EmoCallback` obeys."""

_ADAM: dict[str, Option] = {
    "beta1": Option(None, number(0, below=1), "β1, in the place of --adam_beta1"),
    "beta2": Option(None, number(0, below=1), "β2, in the place of --adam_beta2"),
    "eps": Option(None, number(0), "ε, in the place of --adam_epsilon"),
}
_ELSEWHERE = {
    "lr": "the learning rate is --learning_rate",
    "learning_rate": "the learning rate is --learning_rate",
    "weight_decay": "the weight decay is --weight_decay",
    "betas": "give beta1 and beta2, or --adam_beta1 and --adam_beta2",
}


def optimizer_options() -> dict[str, Option]:
    """What goes to the constructors of the optimizers; read anew each time, as laws and optimizers may be added."""
    versions = [version for cls in FAMILY.values() for version in cls.versions.values()]
    of_rules = {name: option for version in versions for name, option in version.rule.options.items()}
    names = one_of(*dict.fromkeys(version.name for version in versions))
    return {**TABLE, **_ADAM, **law_options(), **of_rules, "version": replace(TABLE["version"], read=names)}


def known_options() -> dict[str, Option]:
    """All options."""
    return optimizer_options() | GROUP_OPTIONS | CALLBACK_OPTIONS


@dataclass(frozen=True, kw_only=True)
class EmoOptions:
    """The options, read and checked.

    Attributes:
        optimizer: those that go to the optimizer's constructor (`beta1`, `beta2` still apart).
        roles: learning rate and weight decay per role of a parameter, for `build_param_groups`.
        callback: those of `EmoCallback`: `self_stop`, …, `console`.
    """

    optimizer: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, GroupOptions] = field(default_factory=dict)
    callback: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Any) -> EmoOptions:
        """Those of `TrainingArguments.optim_args`, a text or a mapping.

        Raises:
            ValueError: as `read_options` and `parse_optim_args` do.
        """
        given = args.optim_args
        return read_options(given) if isinstance(given, Mapping) else _of_text(given or "")


@functools.lru_cache(maxsize=16)
def _of_text(text: str) -> EmoOptions:
    return read_options(parse_optim_args(text))


def read_options(given: Mapping[str, Any]) -> EmoOptions:
    """Check options and bring them to their types.

    Args:
        given: key → value, values as text or as the Python values that the text stands for.

    Raises:
        ValueError: for an unknown key (naming the known ones) or an unacceptable value (naming what is accepted).
    """
    of_optimizer = optimizer_options()
    known = of_optimizer | GROUP_OPTIONS | CALLBACK_OPTIONS
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = _ELSEWHERE.get(key) or (f"did you mean {close[0]}?" if close else "")
            raise ValueError(f"unknown option {key!r}{f' ({hint})' if hint else ''}; known: {', '.join(known)}")
    values = {key: read_value(key, value, known[key].read) for key, value in given.items()}
    roles = {
        role: {option: values[key] for option in _OF_GROUP if (key := f"{role}_{option}") in values} for role in ROLES
    }
    return EmoOptions(
        optimizer={key: value for key, value in values.items() if key in of_optimizer},
        roles={role: GroupOptions(**own) for role, own in roles.items() if own},
        callback={key: value for key, value in values.items() if key in CALLBACK_OPTIONS},
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
            hint = next((f" ({said})" for name, said in _ELSEWHERE.items() if f"{name}=" in str(text)), "")
            raise ValueError(
                f"optim_args: {part!r} is not of the form key=value (in {text!r}){hint}; known keys: "
                f"{', '.join(known_options())}"
            )
        if key in parsed:
            raise ValueError(f"optim_args: {key} is given twice in {text!r}")
        parsed[key] = value
    return parsed


def as_text(optim_args: Mapping[str, Any]) -> str:
    """`optim_args` that were given as a mapping in the form of `--optim_args`."""
    texts = {
        key: "/".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        for key, value in optim_args.items()
    }
    return ",".join(f"{key}={text}" for key, text in texts.items())
