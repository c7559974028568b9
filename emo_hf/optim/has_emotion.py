"""What an emo optimizer, and an emotion that was attached to another optimizer, show and offer alike."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from emo_hf.laws.decision import Decision, EmotionView, Note
from emo_hf.losses.accumulation import Loss
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.facts import Facts


class HasEmotion:
    """An emotion, and perhaps an average of the weights, with the groups and the state that they belong to."""

    _engine: EmotionEngine
    _average: WeightAverage
    param_groups: Any
    state: Any
    defaults: Any

    def _between_steps(self) -> None:
        """Called before anything is shown or told: what a step has left behind is put in order."""

    def _before_a_loss(self, *, last: bool = True, in_parts: bool = False) -> None:
        """Called before a loss comes in; the arguments are those of `tap_loss`."""

    def observe(self, loss: Loss, *, weight: float | None = None) -> None:
        """Show the loss that the next `step()` belongs to. Call it before `backward()`.

        With gradient accumulation call it once per micro-batch with the loss as you scaled it for `backward()`: the
        sum is the loss of the step. A loss shown here takes precedence over one that reached the optimizer by itself.

        Args:
            loss: a number, or a tensor with one element, of any shape, dtype and device. It is detached and copied.
            weight: share of this micro-batch in the step; the loss of the step is then the weighted mean. Leave it
                out for losses that are already scaled.

        Raises:
            TypeError: if `loss` is not a real number.
            ValueError: if `loss` has several elements, or `weight` is not a positive number.
        """
        self._before_a_loss()
        self._engine.observe(loss, weight, self._facts)

    def tap_loss(
        self,
        loss: torch.Tensor,
        weight: float | None = None,
        *,
        last: bool = True,
        together: bool = False,
        in_parts: bool = False,
        graph: torch.Tensor | None = None,
    ) -> None:
        """Take in a loss that a framework is about to send to backward; for `emo_hf.integrations`.

        Losses whose gradients were thrown away without a step (an fp16 overflow, a skipped batch) are dropped.

        Args:
            loss: the loss of a micro-batch, as `observe` takes it.
            weight: as for `observe`.
            last: whether it is the last micro-batch of the step.
            together: whether all ranks go through its backward pass at the same time, so that the exchange of the loss
                can start now.
            in_parts: whether the framework takes one step by calling `step()` for a part of the parameters at a time,
                as DeepSpeed does; the decision then holds until the next loss comes in.
            graph: the tensor that goes to backward, where `loss` is not it.
        """
        self._before_a_loss(last=last, in_parts=in_parts)
        self._engine.tap(loss, weight, self._facts, last=last, together=together, in_parts=in_parts, graph=graph)

    @property
    def _rated_groups(self) -> list[dict[str, Any]]:
        # Adafactor with a relative step has no learning rate in its groups.
        return [group for group in self.param_groups if group.get("lr") is not None]

    @property
    def effective_lr(self) -> dict[str, float]:
        """The learning rate that the last step was taken with, for each parameter group by its name.

        Groups without a name are called `group_0`, …; those without a learning rate are left out.
        """
        self._between_steps()
        return self._engine.effective_lr(self._rated_groups)

    def metrics(self) -> dict[str, float]:
        """What to log now: plain numbers under `emo/…`, for any logger.

        The coefficient's mean, minimum and maximum cover all steps since the last call.
        """
        self._between_steps()
        return self._engine.metrics(self._rated_groups, ends_window=True)

    def current_metrics(self) -> dict[str, float]:
        """What the last step was like, under `emo/…`; `metrics` goes on with its window."""
        self._between_steps()
        return self._engine.metrics(self._rated_groups, ends_window=False)

    @property
    def _facts(self) -> Facts:
        return Facts(self.param_groups, self.state, self.defaults, self._identity)

    @property
    def _identity(self) -> dict[str, Any]:
        """What has to be the same on all ranks, beside the options."""
        return {"optimizer": self._engine.name, "average_weights": self._average.kept}

    @property
    def emotion(self) -> EmotionView:
        """A read-only snapshot of the emotion."""
        self._between_steps()
        return self._engine.law.view()

    @property
    def emo_sync(self) -> str:
        """`global`, one emotion for all ranks, or `local`, each rank its own."""
        return self._engine.rank_mean.mode

    @property
    def decision(self) -> Decision:
        """What the last step was told."""
        self._between_steps()
        return self._engine.law.decision

    @property
    def decisions(self) -> list[Note]:
        """The last things that the law has decided; `emo_hf.laws.words.text_of` puts one into words."""
        self._between_steps()
        return list(self._engine.law.decisions)

    def saw_gradient_norm(self, norm: Any, params: Iterable[torch.Tensor]) -> None:
        """Tell of a gradient norm that clipping has taken, which says for nothing whether the gradients are finite.

        Args:
            norm: a number or a tensor of one element, of a norm of order 1 or more; taken of the gradients as they
                were or as they are, before or after they were clipped by it.
            params: the parameters whose gradients it is of.
        """
        self._between_steps()
        self._engine.saw_gradient_norm(norm, params)

    def hear_evaluation(self, loss: float) -> None:
        """Tell the law the result of an evaluation, the same on all ranks; most laws hear the training loss only.

        Args:
            loss: lower is better.
        """
        self._between_steps()
        self._engine.law.hear_evaluation(loss)

    @property
    def keeps_average(self) -> bool:
        """Whether an average of the weights is kept."""
        return bool(self._average.kept)

    @property
    def shows_average(self) -> bool:
        """Whether the parameters hold the average now."""
        return self._average.is_shown

    def eval(self) -> None:
        """Have the parameters hold the average of the weights, where one is kept (`average_weights`).

        Call it before an evaluation and before the model is saved; in the Trainer that happens by itself. Twice is as
        good as once.
        """
        self._between_steps()
        self._average.show(self.param_groups, self.state)

    def train(self) -> None:
        """Have the parameters hold the weights, after `eval`. Call it before the forward pass of a training step."""
        self._between_steps()
        self._average.hide(self.param_groups, self.state)

    def average_shown(self) -> AbstractContextManager[None]:
        """The average in the parameters while a `with` block lasts; nothing happens where none is kept."""
        self._between_steps()
        return self._average.shown(self.param_groups, self.state)

    def begin_run(self) -> None:
        """Training begins anew, not from a checkpoint: what counts towards its end, and the average, begin anew."""
        self._between_steps()
        self._engine.law.begin_run()
        self._average.restart()

    def restart_average(self) -> None:
        """Have the average begin anew with the weights after the next step, as where the data have changed."""
        self._average.restart()

    def finish_average(self) -> None:
        """Have the parameters hold the average for good; with further steps a new one begins."""
        self._between_steps()
        self._average.finish(self.param_groups, self.state)

    def drop_average(self) -> None:
        """Drop the average: the parameters stay as they are, and it begins anew with further steps."""
        self._average.drop(self.param_groups, self.state)

    def give_way(self, to: str) -> None:
        """Go on without an average of the weights, which does not go with something else.

        Args:
            to: what it does not go with, for the message.

        Raises:
            ValueError: if the user has asked for the average.
        """
        self._average.give_way(to)
        if not self._average.kept:
            self._average.drop(self.param_groups, self.state)

    def _refuse_step_of_average(self) -> None:
        """Refuse a step while the parameters hold the average: its gradients would be of other weights."""
        if self._average.is_shown:
            raise RuntimeError(
                f"{self._engine.name}: the parameters hold the average of the weights, since optimizer.eval() was "
                "called: call optimizer.train() before the forward pass of a training step"
            )

    def _follow_average(self, decision: Decision) -> None:
        """After a step: have the weights enter their average."""
        if not self._average.kept or decision.skip:
            return
        if self._engine.in_parts:  # DeepSpeed's optimizer has copies of the weights, a part at a time
            self.give_way("DeepSpeed")
            return
        if decision.note is not None and decision.note.kind == "lowered":
            self._average.restart()
        self._average.follow(self.param_groups, self.state)
