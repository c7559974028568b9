"""Steps in backward through the Trainer: which of its arguments exclude them, and when they begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.optim.backward_limits import HOW
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.step_in_backward import StepInBackward, step_in_backward
from emo_hf.trainer.options import EmoOptions

if TYPE_CHECKING:
    from transformers import TrainingArguments


def begin(args: TrainingArguments, options: EmoOptions, model: Any, optimizer: Any) -> StepInBackward | None:
    """Begin anew when training begins, as accelerate may have replaced parameters since the optimizer was made.

    Returns:
        The handle; None if the options do not ask for steps in backward.

    Raises:
        ValueError: as for `step_in_backward` and `refuse`.
    """
    emo = unwrap(optimizer)
    if isinstance(emo, EmoOptimizer) and emo._backward is not None and emo._backward.is_armed:
        refuse(args)
    if not isinstance(emo, EmoOptimizer) or not options.optimizer.get(HOW):
        return None
    return step_in_backward(model, optimizer, clip_value=options.optimizer.get("clip_value"))


def refuse(args: TrainingArguments) -> None:
    """Say which of the Trainer's arguments do not go together with steps in backward.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    inner = args.accelerator_config.gradient_accumulation_kwargs or {}
    steps = max(args.gradient_accumulation_steps, inner.get("num_steps", 1))
    if args.max_grad_norm:
        why = (
            f"cannot clip by the norm of all gradients, which are never there at once, and max_grad_norm is "
            f"{args.max_grad_norm:g} (the Trainer's default is 1): set --max_grad_norm 0; to clip the elements of "
            "gradients instead, add clip_value=1.0, say, to optim_args"
        )
    elif steps > 1:
        why = (
            f"does not go together with gradient accumulation, and gradient_accumulation_steps is {steps}: set "
            f"--gradient_accumulation_steps 1, with a larger batch if it fits, or leave {HOW} out"
        )
    elif args.fp16:
        why = "does not go together with --fp16, whose gradients are scaled: use --bf16"
    elif args.deepspeed:
        why = "does not go together with DeepSpeed, which keeps the gradients itself: leave it out"
    else:
        return
    raise ValueError(f"{HOW} {why}")
