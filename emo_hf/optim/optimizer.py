"""EmoOptimizer: an update rule, a law, and the emotion between them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import ParamsT

from emo_hf.laws.ablation import read_ablation
from emo_hf.laws.laws import make_law
from emo_hf.losses.rank_mean import GLOBAL
from emo_hf.optim.backward_steps import arm
from emo_hf.optim.checkpoint import EMOTION_KEY
from emo_hf.optim.display import optimizer_html, optimizer_text
from emo_hf.optim.emotion_engine import EmotionEngine
from emo_hf.optim.left_out import LEAVE_OUT
from emo_hf.optim.stepping import SteppingOptimizer
from emo_hf.optim.validation import without_empty_groups
from emo_hf.optim.version import Version, describe
from emo_hf.reading import read_value


class EmoOptimizer(SteppingOptimizer):
    """Base of the emo optimizers: feeds one emotion, asks it once per step, hands its decision to the update rule.

    A class statement makes an optimizer of the family, and its name known everywhere (see `family.py`):

        class EmoNavi(EmoOptimizer, versions=(Version("v3.1", rule=Navi, law="v3.1"),)): ...
    """

    versions: ClassVar[Mapping[str, Version]] = {}
    """The generations that there are of this optimizer, the default one first."""

    def __init_subclass__(cls, versions: tuple[Version, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if versions:
            cls.versions = {version.name: version for version in versions}
            describe(cls)
            FAMILY[cls.__name__.lower()] = cls

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        version: str | None = None,
        use_shadow: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        native: bool | None = None,
        state: str | None = None,
        compensate: bool | str = False,
        nonfinite: str = LEAVE_OUT,
        emo_sync: str = GLOBAL,
        emo_law: str | None = None,
        writer: Any = None,
        step_in_backward: bool = False,
        clip_value: float | None = None,
        **own: Any,
    ) -> None:
        if "compile" in own:
            warnings.warn("compile is called native now: it chooses kernels in C, not torch.compile", FutureWarning, 2)
            native = own.pop("compile") if native is None else native
        self._version = chosen = self.version_named(version)
        rule_options, law_options = self._sort_options(own, emo_law or chosen.law)
        if chosen.rule.reads_scalar and emo_law not in (None, chosen.law) and read_ablation(emo_law) is None:
            raise ValueError(
                f"emo_law={emo_law!r}: the rule of {type(self).__name__} {chosen.name} reads the scalar of the law "
                f"{chosen.law}, so that no other law can drive it; leave emo_law out, or take emo_law='none'"
            )
        defaults = {
            "lr": chosen.lr if lr is None else lr,
            "betas": chosen.betas if betas is None else betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_shadow": use_shadow,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "native": native,
            "state": state,
            "compensate": compensate,
            "nonfinite": nonfinite,
            **rule_options,
        }
        self._check_options(defaults)
        law = make_law(emo_law or chosen.law, chosen.law, law_options)
        self._engine = EmotionEngine(law, emo_sync, type(self).__name__)
        self._rule = chosen.rule(defaults)
        self._writer = writer
        self._steps_written = 0
        super().__init__(without_empty_groups(params), defaults)
        self._wire()
        if step_in_backward:
            arm(self, clip_value)
        elif clip_value is not None:
            raise ValueError(f"clip_value={clip_value!r} is for step_in_backward=True: elsewhere clip before step()")

    @classmethod
    def version_named(cls, name: str | None) -> Version:
        """A generation by its name; None for the default one.

        Raises:
            ValueError: if there is none of this name.
        """
        if not cls.versions:
            raise TypeError(f"{cls.__name__} has no versions: it is made by `class …(EmoOptimizer, versions=(…,))`")
        if name is None:
            return next(iter(cls.versions.values()))
        if name not in cls.versions:
            raise ValueError(f"version of {cls.__name__} must be one of {', '.join(cls.versions)}, got {name!r}")
        return cls.versions[name]

    def _sort_options(self, own: dict[str, Any], law: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rule's own options, with their defaults, and the law's that were given or that the version sets."""
        version, of_rule = self._version, self._version.rule.options
        known = version.own_options(law)
        unknown = sorted(own.keys() - known.keys())
        if unknown:
            hint = " (give betas=(beta1, beta2))" if {"beta1", "beta2"} & set(unknown) else ""
            if any(name.startswith("self_stop") for name in unknown):
                hint = " (an optimizer cannot stop a loop: use EmoEarlyStoppingCallback, or the Trainer's optim_args)"
            raise TypeError(
                f"{type(self).__name__} {version.name} has no option {', '.join(unknown)}{hint}; beside those of all "
                f"emo optimizers it has: {', '.join(known) or 'none'}"
            )
        rule = {name: read_value(name, own.get(name, option.default), option.read) for name, option in of_rule.items()}
        of_law = {**version.law_options, **own}
        return rule, {name: value for name, value in of_law.items() if name in known and name not in of_rule}

    @property
    def effective_lr(self) -> dict[str, float]:
        """The learning rate that the last step was taken with, for each parameter group by its name.

        Groups without a name are called `group_0`, …
        """
        return self._engine.effective_lr(self.param_groups)

    def metrics(self) -> dict[str, float]:
        """What to log now: plain numbers under `emo/…`, for any logger.

        The coefficient's mean, minimum and maximum cover all steps since the last call.
        """
        return self._engine.metrics(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked as the constructor's are, and its name must be new.

        Raises:
            ValueError: if it is empty, or an option or the name is not acceptable.
        """
        name = param_group.get("name")
        if name is not None and any(group.get("name") == name for group in self.param_groups):
            raise ValueError(f"there is a parameter group named {name!r} already: names must be different")
        params = param_group.get("params")
        if params is not None and not isinstance(params, torch.Tensor):
            param_group["params"] = params if isinstance(params, (set, frozenset)) else list(params)
            if not param_group["params"]:
                raise ValueError("the parameter group is empty: distributed checkpoints cannot be loaded with such")
        self._check_options(self.defaults | {key: value for key, value in param_group.items() if key != "params"})
        # A place in the live groups, so that torch's flattened state dicts carry the emotion too.
        param_group.setdefault(EMOTION_KEY, None)
        super().add_param_group(param_group)

    __repr__, _repr_html_ = optimizer_text, optimizer_html


FAMILY: dict[str, type[EmoOptimizer]] = {}
"""Every optimizer of the family by the name that `--optim` takes. Everything that lists optimizers reads it."""
