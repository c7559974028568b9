"""Steps in backward through the Trainer: what of its arguments excludes them, and when they begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.optim.backward_limits import HOW
from emo_hf.optim.family import family_names
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.step_in_backward import StepInBackward, step_in_backward
from emo_hf.trainer.options import EmoOptions, parse_optim_args, read_options

if TYPE_CHECKING:
    from transformers import TrainingArguments


def refuse_early(args: TrainingArguments, options: EmoOptions) -> None:
    """Say at once which of the Trainer's arguments do not go together with the option, if it is given.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    if options.optimizer.get(HOW):
        _refuse(args)


def begin(args: TrainingArguments, model: Any, optimizer: Any) -> StepInBackward | None:
    """Begin anew when training begins, as accelerate may have replaced parameters since the optimizer was made.

    Returns:
        The handle; None if the Trainer's arguments do not ask for steps in backward.

    Raises:
        ValueError: as for `step_in_backward`, or if the Trainer's arguments do not go together with an optimizer that
            was made so.
    """
    emo = unwrap(optimizer)
    if not isinstance(emo, EmoOptimizer):
        return None
    if emo._backward is not None and emo._backward.is_armed:
        _refuse(args)
    if getattr(args.optim, "value", args.optim) not in family_names():
        return None
    options = read_options(parse_optim_args(args.optim_args)).optimizer
    if not options.get(HOW):
        return None
    return step_in_backward(model, optimizer, clip_value=options.get("clip_value"))


def _refuse(args: TrainingArguments) -> None:
    if args.max_grad_norm:
        raise ValueError(
            f"{HOW} cannot clip by the norm of all gradients, which are never there at once, and max_grad_norm is "
            f"{args.max_grad_norm:g} (the Trainer's default is 1): set --max_grad_norm 0; to clip the elements of "
            "gradients instead, add clip_value=1.0, say, to optim_args"
        )
    inner = args.accelerator_config.gradient_accumulation_kwargs or {}
    steps = max(args.gradient_accumulation_steps, inner.get("num_steps", 1))
    if steps > 1:
        raise ValueError(
            f"{HOW} does not go together with gradient accumulation, and gradient_accumulation_steps is {steps}: set "
            f"--gradient_accumulation_steps 1, with a larger batch if it fits, or leave {HOW} out"
        )
    if args.fp16:
        raise ValueError(f"{HOW} does not go together with --fp16, whose gradients are scaled: use --bf16")
    if args.deepspeed:
        raise ValueError(f"{HOW} does not go together with DeepSpeed, which keeps the gradients itself: leave it out")
