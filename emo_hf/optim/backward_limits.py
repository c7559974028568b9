"""What steps in backward do not go together with, and what to do instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emo_hf.optim.left_out import SKIP_STEP
from emo_hf.optim.loss_warnings import warn_at_the_caller
from emo_hf.optim.sharding import is_sharded

if TYPE_CHECKING:
    from emo_hf.optim.optimizer import EmoOptimizer

HOW = "step_in_backward"
"""What it is called in messages: the function, the constructor's option, the Trainer's."""

AVERAGING_LATER = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Classes of models whose gradients are not those of the step yet when backward comes to a parameter."""

SCALED = (
    f"{HOW} does not go together with a GradScaler (fp16): parameters would move by gradients that are scaled, before "
    f"it is known whether they are finite. Use bfloat16, or leave {HOW} out"
)
DEEPSPEED = f"{HOW} does not go together with DeepSpeed, which keeps the gradients itself: leave {HOW} out"
WITHOUT_EFFECT = (
    f"{HOW}: no parameter moved in backward, so that optimizer.step() moves them as usual. The model's parameters are "
    f"others than when it began: call {HOW} after whatever replaces them (fully_shard, accelerator.prepare)"
)
RESET = (
    f"{HOW}: the gradients were reset before optimizer.step(): the parameters that backward had reached have moved "
    "all the same, and their step is over"
)


SECOND_GRADIENT = (
    f"{HOW}: a second gradient came for a parameter before step(), and it has moved by the first. Either several "
    "backward passes come before step(): gradients are accumulated, or the loss is computed in cached parts "
    "(GradCache, the Cached… losses of sentence-transformers). Or one pass comes to a parameter more than once: "
    "reentrant gradient checkpointing of a layer that is used twice, where use_reentrant=False helps. Else leave "
    f"{HOW} out"
)


def accumulating(what: str) -> str:
    """What to say of gradient accumulation, of which `what` is a sign."""
    return (
        f"{HOW}: {what}, and parameters have moved or would move without it. Gradient accumulation does not go "
        "together with it: call optimizer.step() after each backward, with a larger batch if it fits, or leave "
        f"{HOW} out"
    )


def refuse_what_needs_all_gradients(optimizer: EmoOptimizer, how: str = HOW) -> None:
    """Raise where a step cannot begin before the gradients of all parameters are there.

    Args:
        optimizer: the optimizer.
        how: what is being done instead, for the message.

    Raises:
        ValueError: naming the option that would have to be another.
    """
    law = optimizer._engine.law
    if optimizer.rule.reads_group:
        raise ValueError(
            f"{how}: the rule of {type(optimizer).__name__} {optimizer.version} looks at a whole parameter group, and "
            f"may move it, before a step: take another optimizer of the family, or leave {how} out"
        )
    if law.guards_gradients:
        raise ValueError(
            f"{how}: guard=True of emo_law={law.label!r} leaves out a step if any of its gradients is not finite, "
            "which is not known when the first parameter moves: take guard=False (single elements whose gradient is "
            f"not finite are left out even so), or leave {how} out"
        )
    if any(group.get("nonfinite") == SKIP_STEP for group in optimizer.param_groups):
        raise ValueError(
            f"{how}: nonfinite={SKIP_STEP!r} leaves out a step if any of its gradients is not finite, which is not "
            f"known when the first parameter moves: take nonfinite='leave_out', or leave {how} out"
        )


def refuse_ranks(optimizer: EmoOptimizer) -> None:
    """Raise where ranks step together, but do not average a gradient before it has come to its parameter.

    Raises:
        RuntimeError: with the remedy.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if optimizer._engine.rank_mean.applies and not any(map(is_sharded, params)):
        raise RuntimeError(
            f"{HOW}: several ranks share one emotion, and a parameter would move before they have averaged its "
            "gradient (DDP does so later). Shard the model by fully_shard (FSDP2), which averages first; or, for "
            "ranks that exchange weights instead of gradients, take emo_sync=local"
        )


def refuse_model(model: nn.Module) -> None:
    """Raise where gradients are averaged over ranks after they have come.

    Raises:
        ValueError: naming what does so.
    """
    for module in model.modules():
        if any(base.__name__ in AVERAGING_LATER for base in type(module).__mro__):
            raise ValueError(
                f"{HOW}: {type(module).__name__} averages the gradients over the ranks when they have come to their "
                "parameters, which would have moved by then. Shard the model by fully_shard (FSDP2), which averages "
                f"first, or leave {HOW} out"
            )


def refuse_wrapper(optimizer: Any) -> None:
    """Raise for what accelerate has put around an optimizer, if it accumulates or scales gradients.

    Raises:
        ValueError: with the remedy.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        raise ValueError(SCALED)
    steps = getattr(getattr(optimizer, "gradient_state", None), "num_steps", 1)
    if steps > 1:
        raise ValueError(accumulating(f"accelerate has gradient_accumulation_steps={steps}"))


def warn_of_unreached(groups: Sequence[dict[str, Any]], moved: set[int]) -> bool:
    """Name the parameters that a backward pass has not come to, if there are any; whether there are."""
    missing = []
    for at, group in enumerate(groups):
        named, names = group.get("name", f"group_{at}"), group.get("param_names")
        for i, param in enumerate(group["params"]):
            if param.requires_grad and id(param) not in moved:
                missing.append(names[i] if names else f"parameter {i} of {named}")
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        warn_at_the_caller(
            f"{HOW}: backward did not reach {', '.join(missing[:5])}{more}, which stay as they are. That is right for "
            "parameters that the loss does not depend on; else the model is not the one that the optimizer is for"
        )
    return bool(missing)


def trained(groups: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """The parameters that require a gradient."""
    return [param for group in groups for param in group["params"] if param.requires_grad]
