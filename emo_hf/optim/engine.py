"""From the losses that come in to one decision per step. It does not know whose it is: facts come as `Facts`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

from emo_hf.laws import saved as codec
from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import PREFIX, CoefficientWindow, metrics
from emo_hf.losses.accumulation import Loss
from emo_hf.losses.rank_mean import RankMean
from emo_hf.losses.step_loss import StepLoss
from emo_hf.optim.facts import Facts, group_names
from emo_hf.optim.finite import SeenNorm, count_not_finite, gradients_are_finite
from emo_hf.optim.left_out import LEAVE_OUT, PROPAGATE, LeftOut, not_finite
from emo_hf.optim.loss_warnings import missing_loss, warn_at_the_caller

WIRED_BY = {"accelerate": "emo_hf.integrations.accelerate"}
"""Where a process has imported the one, `wire()` of the other has losses reach an optimizer that is made."""

SAVED: Mapping[str, codec.Reader] = {"coefficients": codec.Numbers(4)}

Groups = Sequence[Mapping[str, Any]]


class EmotionEngine:
    """Takes losses in, averages them over micro-batches and ranks, and asks the law once per step.

    Args:
        law: the law.
        sync: `global`, one emotion for all ranks; `local`, each rank its own.
        name: the optimizer's class, for messages.
    """

    def __init__(self, law: Law, sync: str, name: str) -> None:
        self.law = law
        self.name = name
        self.losses = StepLoss()
        self.rank_mean = RankMean(sync)
        self.coefficients = CoefficientWindow()
        self.left_out = LeftOut()
        self.applied_lr: list[Any] = []  # numbers, or tensors where the learning rates are such
        self.in_parts = False
        self.is_new_step = True  # and not another part of the one before
        self._decision_for_parts: Decision | None = None
        self._has_said: set[str] = set()
        self._norm: SeenNorm | None = None
        self._gradients_are_finite = False  # known of the step that is being taken

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_norm": None}  # it belongs to the gradients, which are not copied

    def begin(self) -> None:
        """Have the losses wired to wherever they come from."""
        for package, module in WIRED_BY.items():
            if package in sys.modules:
                importlib.import_module(module).wire()

    def observe(self, loss: Loss, weight: float | None, facts: Facts) -> None:
        """Take in a loss that the user shows; see `EmoOptimizer.observe`."""
        if weight is not None and not (isinstance(weight, Real) and 0.0 < weight < math.inf):
            raise ValueError(f"weight must be a positive number, got {weight!r}")
        if self.losses.add(loss, weight, facts.param_groups):
            self.law.drop_loss()

    def tap(
        self,
        loss: Loss,
        weight: float | None,
        facts: Facts,
        *,
        last: bool,
        together: bool,
        in_parts: bool,
        graph: torch.Tensor | None = None,
    ) -> None:
        """Take in a loss that a framework is about to send to backward; see `EmoOptimizer.tap_loss`."""
        self.in_parts, self._decision_for_parts = in_parts, None
        self.rank_mean.cancel()  # what is under way lacks this loss
        if self.losses.add(loss, weight, facts.param_groups, tapped=True, last=last, graph=graph):
            self.law.drop_loss()
        if last and together and not self.losses.shown:
            self.rank_mean.start(self.losses.of_next_step, facts.device)

    def saw_gradient_norm(self, norm: Any, params: Iterable[torch.Tensor]) -> None:
        """Take note of a norm that clipping has taken, for as long as the gradients are what they are now."""
        self._norm = SeenNorm(norm, params)

    def left_out_by(self, group: Mapping[str, Any]) -> LeftOut | None:
        """What counts the elements that a step leaves out of a group; None if it need not look for any."""
        return self.left_out if group["nonfinite"] == LEAVE_OUT and not self._gradients_are_finite else None

    def gradients_are_reset(self, facts: Facts) -> None:
        """The gradients are about to be reset: a loss that came with them and saw no step goes with them."""
        if self.losses.reset(facts.have_gradients):
            self.rank_mean.cancel()
            self.law.drop_loss()

    def creates_state_only(self, facts: Facts) -> bool:
        """Whether the step that is being taken is there for the state alone."""
        return not self.losses.of_next_step and facts.create_state_only

    def decide(self, facts: Facts) -> Decision:
        """The decision of the step that is being taken."""
        norm, self._norm = self._norm, None
        self._gradients_are_finite = norm is not None and norm.is_at_hand and norm.says_finite(facts.param_groups)
        self.is_new_step = self._decision_for_parts is None or bool(self.losses.of_next_step)
        if self._decision_for_parts is not None and not self.is_new_step:
            return self._decision_for_parts
        only_creates_state = self.creates_state_only(facts)
        if not only_creates_state:
            self.rank_mean.compare_options(lambda: facts.same_on_ranks(self.law), self.name)
        loss = self.rank_mean.take(self.losses.of_next_step, facts.device, alone=only_creates_state)
        self.losses.clear()
        if loss is None:
            # Checkpointing code steps at learning rate 0 to create the state: that needs no loss and no warning.
            if self.law.acts and not facts.are_at_rate_0 and self._is_first("a missing loss"):
                warn_at_the_caller(missing_loss(self.name))
            neutral = self.law.neutral() if only_creates_state else self.law.neutral_step()
            return neutral if only_creates_state else self._guarded(neutral, facts, norm)
        decision = self._guarded(self.law.feel(loss), facts, norm)
        complaint = self.law.complaint()
        if complaint is not None and self._is_first("a complaint"):
            warn_at_the_caller(f"{self.name}: {complaint}")
        self.coefficients.add(decision.coefficient)
        self._decision_for_parts = decision if self.in_parts else None
        return decision

    def _guarded(self, decision: Decision, facts: Facts, norm: SeenNorm | None) -> Decision:
        """The decision, or another if a gradient on any rank is not finite and such steps are to be left out."""
        # The same on all ranks, as the loss is.
        if decision.skip or not (self.law.guard or facts.skip_nonfinite):
            return decision
        spoilt = not (
            self._gradients_are_finite
            or (norm is not None and norm.says_finite(facts.param_groups))
            or gradients_are_finite(facts.param_groups)
        )
        self._gradients_are_finite = not spoilt
        if not self.rank_mean.on_any(spoilt, facts.device):
            return decision
        if spoilt:
            self.left_out.add(sum(count_not_finite(facts.param_groups).values()))
            self.warn_of_left_out(facts)
        return self.law.refuse_gradients()

    def warn_of_left_out(self, facts: Facts) -> None:
        """Say once that gradients were not finite, as far as it is known without waiting for a device."""
        if self.left_out.count_in_main_memory:
            self._warn_once_of_left_out(facts.param_groups)

    def _warn_once_of_left_out(self, groups: Groups) -> None:
        if self._is_first("gradients"):
            found = ", ".join(f"{name} ({count} elements)" for name, count in count_not_finite(groups).items())
            warn_at_the_caller(not_finite(self.name, self.law.observations, found))

    def _is_first(self, what: str) -> bool:
        """Whether nothing has been said of something so far; what is, is said once."""
        is_first = what not in self._has_said
        self._has_said.add(what)
        return is_first

    def effective_lr(self, groups: Groups) -> dict[str, float]:
        """The learning rate of the last step for each group, by its name (`group_0`, … where it has none)."""
        applied = self.applied_lr
        if len(applied) != len(groups):  # no step yet, or a group was added since
            applied = [self.law.decision.step_size(float(group["lr"])) for group in groups]
        return dict(zip(group_names(groups), map(float, applied), strict=True))

    def metrics(self, groups: Groups, *, ends_window: bool) -> dict[str, float]:
        """What to log now, under `emo/…`.

        Args:
            groups: the parameter groups that have a learning rate.
            ends_window: whether the coefficient's mean, minimum and maximum, and elements that have been counted on a
                device, are wanted too; a new window begins then.
        """
        window = self.coefficients if ends_window else CoefficientWindow()
        named = [group["name"] for group in groups if "name" in group]
        values = metrics(self.law.view(), self.effective_lr(groups), named, window)
        are_counted = any(group.get("nonfinite", PROPAGATE) != PROPAGATE for group in groups)
        # For a device one waits where something is logged, not before.
        if are_counted and (ends_window or not self.left_out.is_on_devices):
            count = self.left_out.count
            values[f"{PREFIX}nonfinite_gradients"] = float(count)
            if count:
                self._warn_once_of_left_out(())
        if ends_window:
            self.coefficients.clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """The emotion and the window for the logs, as plain numbers, strings and lists."""
        return {**self.law.state_dict(), "coefficients": self.coefficients.state()}

    def read_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What `state_dict` gave, checked; `put_state` takes it, and nothing is changed here.

        Raises:
            ValueError: if it is of another law, or damaged.
        """
        (window,) = codec.read(saved, SAVED).values()
        if len(window) != 4 or window[0] != int(window[0]) or window[0] < 0:
            raise ValueError(f"the checkpoint's emotion is damaged: coefficients: {window} is no window")
        return {"law": self.law.read_state(saved), "coefficients": window}

    def put_state(self, values: Mapping[str, Any]) -> None:
        """Take over what `read_state` has read, and forget everything that was under way."""
        self.law.put_state(values["law"])
        self.coefficients.load(values["coefficients"])
        self.rank_mean.cancel()
        self.losses = StepLoss()
        self.applied_lr = []
        self._decision_for_parts = None
