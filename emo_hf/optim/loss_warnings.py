"""What an optimizer says when something is wrong with its losses, and what to do about it."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

NOT_THE_CALLER = tuple(os.path.join(os.path.dirname(path), "") for path in (torch.__file__, os.path.dirname(__file__)))


def warn_at_the_caller(message: str) -> None:
    """Warn at the line that called `step()`, past this package, torch, its schedulers and accelerate."""
    level, frame = 1, sys._getframe()
    while frame is not None and _is_ours(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, RuntimeWarning, stacklevel=level if frame is not None else 2)


def _is_ours(file: str) -> bool:
    return file.startswith(NOT_THE_CALLER) or f"{os.sep}accelerate{os.sep}" in file


def missing_loss(name: str) -> str:
    """What to say of a step without a loss.

    Args:
        name: the optimizer's class.
    """
    return (
        f"{name}.step() was called without a loss, so the emotion is left as it was and the step is a neutral "
        "one. Show it the loss: call observe(loss) before loss.backward(), or pass a closure to step(). With "
        "accelerate or the Trainer, prepare the optimizer with the Accelerator and use accelerator.backward(loss): "
        "then the loss arrives by itself."
    )


def warn_about_flat_parameters(name: str) -> None:
    """Say, on one rank, what DeepSpeed does to an update rule that looks at whole parameters."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning(
            "%s under DeepSpeed: ZeRO hands over all parameters as flat vectors, so matrices are updated by the rule "
            "for vectors, with a state as large as they are, and norms are those of what a rank holds. For rows, "
            "columns and whole norms use FSDP2 or DDP.",
            name,
        )
