"""A generation of an optimizer: which rule, which law, which defaults; and the help that follows from it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_hf.laws import LAWS
from emo_hf.optim.rules.rule import Rule
from emo_hf.reading import Option


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

    @property
    def lr_is_a_scale(self) -> bool:
        """Whether `lr` multiplies a learning rate that the law makes by itself, and belongs around 1."""
        return self.lr >= 1.0


ARGUMENTS = """\
Args:
    params: parameters, named parameters, or parameter groups (dicts with `params`, optionally `name` and any of the
        options below). Groups without parameters are left out.
    lr: learning rate; a scheduler may change it. The emotion multiplies it, and never writes it. Default: {lr}.
    betas: (β1, β2), each in [0, 1). Default: {betas}.
    eps: ε of the formulas.
    weight_decay: decoupled weight decay.
    version: {versions}.
    use_shadow: keep a slow copy of the parameters and mix it in as the law says; one more tensor of state.
    maximize: climb instead of descend.
    foreach: True for the multi-tensor implementation, False against it, None to choose the best that works.
    fused: the same for torch's fused Adam kernel, where the rule can use it.
    native: the same for our kernels in C, which are the default for float32 in main memory.
    state: `8bit` keeps averages of the gradient in 8 bits; None in the dtype of their parameter.
    compensate: for bfloat16 and float16 parameters, keep what rounding takes from them: True in a tensor of their
        dtype, `8bit` in a byte (bfloat16 only).
    nonfinite: what becomes of NaN and infinite gradients: `leave_out`, their elements stay as they are; `skip_step`,
        no parameter moves in such a step, on any rank; `propagate`, what torch's optimizers do.
    emo_sync: `global`, one emotion for all ranks of a distributed job; `local`, each rank its own.
    emo_law: another law than the version's ({laws}); `none` follows the loss, logs and changes nothing.
    step_in_backward: move each parameter as soon as backward has its gradient, and free the gradient; see
        `emo_hf.step_in_backward`.
    clip_value: what elements of gradients are clipped to then, before they are used; None leaves them.
    writer: something with `add_scalar(name, value, step)`, such as a TensorBoard SummaryWriter, that is given each
        step's metrics. It is not copied, pickled or saved.
{own}
Raises:
    ValueError: if an option is out of range or there are no parameters.
    TypeError: if there is no such option.
"""


def describe(cls: Any) -> None:
    """Give an optimizer's class the docstring and the signature that follow from its versions."""
    versions: Mapping[str, Version] = cls.versions
    default = next(iter(versions.values()))
    formulas = []
    for version in versions.values():
        formula = inspect.cleandoc(version.rule.__doc__ or "")
        law = f"{version.name}: law {version.law}" + (f", lr {version.lr:g}, betas {version.betas}")
        formulas.append(f"{law}; the rule `{version.rule.__name__}`:\n\n{textwrap.indent(formula, '    ')}\n")
    own = {name: option for version in versions.values() for name, option in version.own_options().items()}
    arguments = ARGUMENTS.format(
        lr=f"{default.lr:g}",
        betas=default.betas,
        versions=" or ".join(f"`{name}`" for name in versions) + (", the first by default" if versions else ""),
        laws=", ".join(f"`{name}`" for name in LAWS),
        own="".join(f"    {name}: {option.help}. Default: {option.default!r}.\n" for name, option in own.items()),
    )
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or cls.__name__), "", *formulas, arguments])
