"""A generation of an optimizer: which rule, which law, which defaults; and the help that follows from it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_hf.laws import LAWS
from emo_hf.optim.options import IMPLEMENTATION_OPTIONS, TABLE, read_group
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.optim.rules.rule import Rule
from emo_hf.reading import Option, read_value


@dataclass(frozen=True, kw_only=True)
class Version:
    """One generation of an optimizer.

    Attributes:
        name: what `version` takes.
        rule: how parameters move.
        law: what is made of the loss, unless `emo_law` says otherwise.
        lr: default learning rate.
        betas: default betas.
        law_options: options of the law in which this optimizer differs from the others of its generation.
    """

    name: str
    rule: type[Rule]
    law: str
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    law_options: Mapping[str, Any] = field(default_factory=dict)

    def own_options(self, law: str | None = None) -> dict[str, Option]:
        """The options that this generation has beside those of all emo optimizers, the rule's and the law's.

        Args:
            law: what `emo_law` says; None for the generation's own law.
        """
        return {**self.rule.options, **LAWS[law if law in LAWS else self.law].options}

    def read_options(self, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options but `version`, read, defaults filled in; the law's only where they were given.

        Raises:
            TypeError: if the optimizer, which is called `owner`, has no such option.
            ValueError: if a value is not acceptable.
        """
        law = read_value("emo_law", given.get("emo_law"), TABLE["emo_law"].read) if "emo_law" in TABLE else None
        own = self.own_options(law)
        unknown = sorted(given.keys() - own.keys() - TABLE.keys())
        if unknown:
            hint = " (give betas=(beta1, beta2))" if {"beta1", "beta2"} & set(unknown) else ""
            if any(name.startswith("self_stop") for name in unknown):
                hint = " (an optimizer cannot stop a loop: use EmoEarlyStoppingCallback, or the Trainer's optim_args)"
            raise TypeError(
                f"{owner} {self.name} has no option {', '.join(unknown)}{hint}; beside those of all emo optimizers it "
                f"has: {', '.join(own) or 'none'}"
            )
        wanted = {**TABLE, **self.rule.options, **{name: own[name] for name in own if name in given}}
        return {
            name: read_value(name, given.get(name, option.default), option.read)
            for name, option in wanted.items()
            if name != "version"
        }

    def read_group(self, owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a parameter group of an optimizer called `owner`, checked and brought to their types.

        Raises:
            ValueError: if a value is not acceptable, or this rule cannot do what it says.
        """
        read = read_group(options, self.rule.options)
        for name in IMPLEMENTATION_OPTIONS:
            if read[name] and name not in self.rule.implementations:
                raise ValueError(f"{owner} has no {name} implementation: leave {name}=None")
        if read["state"] == EIGHT_BITS and not self.rule.eight_bit_state:
            raise ValueError(
                f"state={EIGHT_BITS!r}: {owner} {self.name} keeps no averages that 8 bits would make smaller: leave "
                f"state out (compensate={EIGHT_BITS!r} is for all optimizers)"
            )
        return read

    @property
    def lr_is_a_scale(self) -> bool:
        """Whether `lr` multiplies a learning rate that the law makes by itself, and belongs around 1."""
        return self.lr >= 1.0


ARGUMENTS = """\
Args:
    params: parameters, named parameters, or parameter groups (dicts with `params`, optionally `name` and any of the
        options that a group may have). Groups without parameters are left out.
    lr: learning rate; a scheduler may change it. The emotion multiplies it, and never writes it. Default: {lr}.
    betas: (β1, β2), each in [0, 1). Default: {betas}.
    eps: ε of the formulas.
    weight_decay: decoupled weight decay.
    writer: something with `add_scalar(name, value, step)`, such as a TensorBoard SummaryWriter, that is given each
        step's metrics. It is not copied, pickled or saved.
{options}
Raises:
    ValueError: if an option is out of range or there are no parameters.
    TypeError: if there is no such option.
"""


def describe(cls: Any) -> None:
    """Give an optimizer's class the docstring that follows from its versions and the table of options."""
    versions: Mapping[str, Version] = cls.versions
    default = next(iter(versions.values()))
    formulas = []
    for version in versions.values():
        formula = inspect.cleandoc(version.rule.__doc__ or "")
        law = f"{version.name}: law {version.law}, lr {version.lr:g}, betas {version.betas}"
        formulas.append(f"{law}; the rule `{version.rule.__name__}`:\n\n{textwrap.indent(formula, '    ')}\n")
    own = {name: option for version in versions.values() for name, option in version.own_options().items()}
    choices = {"version": ", ".join(versions), "emo_law": ", ".join(LAWS)}
    lines = []
    for name, option in {**TABLE, **own}.items():
        of = f" ({choices[name]})" if name in choices else ""
        said = f"{name}: {option.help}{of}. Default: {option.default!r}."
        lines += textwrap.wrap(said, 115, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    arguments = ARGUMENTS.format(lr=f"{default.lr:g}", betas=default.betas, options="\n".join(lines) + "\n")
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or cls.__name__), "", *formulas, arguments])
