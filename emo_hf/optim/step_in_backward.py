"""Each parameter is moved while backward goes on, as soon as its gradient is there, and the gradient is freed."""

from __future__ import annotations

from typing import Any

from torch import nn

from emo_hf.optim.attach import _innermost
from emo_hf.optim.backward_limits import HOW, refuse_model, refuse_wrapper
from emo_hf.optim.backward_steps import BackwardSteps, arm
from emo_hf.optim.optimizer import EmoOptimizer


class StepInBackward:
    """What `step_in_backward` returns: takes it back."""

    def __init__(self, steps: BackwardSteps) -> None:
        self._steps = steps

    def remove(self) -> None:
        """Let `optimizer.step()` move the parameters again; doing it twice changes nothing."""
        self._steps.disarm()


def step_in_backward(model: nn.Module, optimizer: Any, *, clip_value: float | None = None) -> StepInBackward:
    """Have an emo optimizer move each parameter as soon as backward has its gradient, and free the gradient.

    The gradients of a model are then never there all at once, which saves their memory. An emo optimizer can do so,
    since what it makes of a step depends on the loss alone, and that is known before backward begins. The results are
    those of ordinary steps to the last bit. Loops stay as they are: show the loss (or let accelerate show it), call
    `loss.backward()`, then `optimizer.step()`, which closes the step, and `zero_grad()`.

    It needs one backward pass a step, and cannot clip by the norm of all gradients. Call it after whatever replaces
    the parameters (`fully_shard`, `accelerator.prepare`). Learning rates are read while backward goes on.

    Args:
        model: the model whose parameters they are.
        optimizer: an emo optimizer, or a wrapper that holds one as `.optimizer`, such as accelerate's.
        clip_value: clip the elements of each gradient to ±clip_value before it is used, as
            `torch.nn.utils.clip_grad_value_` does.

    Returns:
        A handle whose `remove()` takes it back.

    Raises:
        TypeError: if it is not an emo optimizer.
        ValueError: if the optimizer's rule, its law (`guard`) or `nonfinite="skip_step"` needs all gradients before a
            parameter moves; if the model averages gradients after they have come (DDP, FSDP1, DeepSpeed); if
            accelerate accumulates or scales gradients; if the optimizer has none of the model's parameters; or for a
            `clip_value` that is not positive.
        RuntimeError: later, in backward, if gradients are accumulated, or ranks share gradients in another way; in
            `step()`, if a GradScaler has scaled them.
    """
    inner = _innermost(optimizer)
    if not isinstance(inner, EmoOptimizer):
        raise TypeError(
            f"{HOW} takes an emo optimizer, whose step depends on the loss alone, or a wrapper that holds one as "
            f".optimizer; got {type(inner).__name__}"
        )
    refuse_model(model)
    refuse_wrapper(optimizer)
    its = {id(param) for group in inner.param_groups for param in group["params"]}
    if not any(id(param) in its for param in model.parameters()):
        raise ValueError(
            f"{HOW}: the optimizer has none of the model's parameters. Make it for this model, or call {HOW} after "
            "whatever replaces them (fully_shard, accelerator.prepare)"
        )
    return StepInBackward(arm(inner, clip_value))
