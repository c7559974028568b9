"""A loss belongs to its step: when the step does not come, the loss goes with it."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from emo_hf import EmoNavi, attach


class Raises(torch.autograd.Function):
    """Its backward fails, as one that runs out of memory does."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


class Loop:
    """A loop that shows losses in one of several ways, to an emo optimizer or to an attached emotion.

    A first step is taken with a loss of 2.
    """

    def __init__(self, show: str, *, attached: bool = False, set_to_none: bool = True) -> None:
        self.model: nn.Module = nn.Linear(2, 1)
        self.optimizer: Any = (torch.optim.AdamW if attached else EmoNavi)(self.model.parameters(), lr=1e-3)
        self.handle = attach(self.optimizer) if attached else self.optimizer
        self.show, self.set_to_none = show, set_to_none
        self.backward(2.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert self.felt == (2.0, 1, 0)

    def loss(self, value: float) -> Tensor:
        return self.model(torch.ones(1, 2)).sum() * 0.0 + value

    def observe(self, loss: Tensor) -> None:
        if "observed" in self.show:
            self.handle.observe(loss.item() if "as a number" in self.show else loss)

    def tap(self, loss: Tensor, *, last: bool = True) -> None:
        if "tapped" in self.show:
            self.handle.tap_loss(loss, last=last)

    def shown(self, loss: Tensor) -> Tensor:
        self.observe(loss)
        self.tap(loss)
        return loss

    def backward(self, *values: float, resets: bool = False) -> None:
        """Show the losses of one step, perhaps reset the gradients then, and have backward pass through them."""
        for number, value in enumerate(values, start=1):
            loss = self.loss(value)
            self.observe(loss)
            if resets and number == 1:
                self.optimizer.zero_grad(self.set_to_none)
            self.tap(loss, last=number == len(values))
            loss.backward()

    def do(self, what: str) -> None:
        """One word of a script: see `SCRIPTS`."""
        if what == "raise":
            with pytest.raises(RuntimeError, match="out of memory"):
                self.shown(Raises.apply(self.loss(9.0)) * 1.0).backward()
        elif what == "zero_grad":
            self.optimizer.zero_grad(self.set_to_none)
        elif what == "model.zero_grad":
            self.model.zero_grad()
        elif what == "step":
            self.optimizer.step()
        elif what == "climb":
            with torch.no_grad():
                for param in self.model.parameters():
                    param.add_(0.1)
        elif what.startswith("show:"):
            self.show = what.removeprefix("show:")
        elif what.startswith("left:"):
            self.observe(self.loss(float(what.removeprefix("left:"))))
        else:
            values = map(float, what.removeprefix("reset:").split("+"))
            self.backward(*values, resets=what.startswith("reset:"))

    @property
    def felt(self) -> tuple[float, int, int]:
        """The slow average, how many losses were taken in, and how many were left out."""
        emotion = self.handle.emotion
        return emotion.long, emotion.observations, emotion.skipped

    def ends_with(self, value: float, *, skipped: int = 0, steps: int = 0) -> None:
        """Take a step and check that it was given this loss, after more steps with losses of 2."""
        self.optimizer.step()
        assert self.felt == (pytest.approx(0.01 * value + 0.99 * 2.0), 2 + steps, skipped)


SHOWN = ("observed", "tapped", "observed and tapped")
NUMBER = "observed as a number"
SCRIPTS: list[tuple[str, tuple[str, ...], str, int]] = [
    ("a batch is left before backward", ("observed", "observed and tapped"), "left:9 left:8 3", 0),
    ("backward raises", SHOWN, "raise 3", 0),
    ("the model resets gradients", SHOWN, "9 model.zero_grad 9 model.zero_grad 3", 2),
    ("the model resets those of micro-batches", SHOWN, "9+9+9 model.zero_grad 9+9+9 model.zero_grad 1+1+1", 2),
    ("the optimizer resets gradients", (*SHOWN, NUMBER), "9 zero_grad 3", 1),
    ("the optimizer resets those of micro-batches", SHOWN, "9+9+9 zero_grad 1+1+1", 1),
    ("what was observed goes with what was tapped", (NUMBER + " and tapped",), "9 model.zero_grad show:tapped 3", 1),
    ("reset between showing and backward", ("observed", NUMBER, "observed and tapped"), "reset:9 reset:8 reset:3", 2),
    ("micro-batches go together", ("observed", "observed and tapped"), "reset:4+5 reset:1+2", 1),
    ("SAM climbs, and the model resets", ("observed and tapped",), "3 climb model.zero_grad show:tapped 9", 0),
    ("SAM climbs, and the optimizer resets", ("observed and tapped",), "3 climb zero_grad show:tapped 9", 0),
    ("resets around steps throw nothing away", SHOWN, "zero_grad 2 step zero_grad zero_grad 2 step zero_grad 3", 0),
    ("nor do the model's", SHOWN, "model.zero_grad 2 step model.zero_grad 2 step model.zero_grad 3", 0),
    ("numbers whose gradients have been used", (NUMBER,), "reset:1+1 step reset:1+1 step reset:1+2", 0),
]  # fmt: skip
"""What happens, ways of showing losses, a script that ends before a step with a loss of 3, how many were left out.

In a script, `9` is a loss of 9 and its backward pass, `4+5` are two micro-batches, `left:9` is shown only; with
`reset:9` it is shown, then the optimizer resets gradients, then backward begins. At `climb` gradients move weights.
"""


@pytest.mark.parametrize("attached", [False, True], ids=["emo", "attached"])
@pytest.mark.parametrize(("ways", "script", "skipped"), [row[1:] for row in SCRIPTS], ids=[row[0] for row in SCRIPTS])
def test_a_loss_whose_step_never_came_is_not_felt_and_counted_if_its_gradients_were_there(
    ways: tuple[str, ...], script: str, skipped: int, attached: bool
) -> None:
    for show, set_to_none in itertools.product(ways, (True, False)):
        loop = Loop(show, attached=attached, set_to_none=set_to_none)
        for word in script.split():
            loop.do(word)
        loop.ends_with(3.0, skipped=skipped, steps=script.count("step"))


def test_a_batch_that_is_left_is_dropped_where_parameters_move_within_backward_too() -> None:
    model = nn.Linear(2, 1)
    optimizer = EmoNavi(model.parameters(), step_in_backward=True)
    for value in (9.0, 3.0):
        loss = model(torch.ones(1, 2)).sum() * 0.0 + value
        optimizer.observe(loss)
    loss.backward()
    optimizer.step()
    assert (optimizer.emotion.short, optimizer.emotion.observations) == (3.0, 1)


@pytest.mark.parametrize("resets", ["optimizer", "model"])
@pytest.mark.parametrize("show", ["observed", "tapped"])
def test_a_step_that_a_gradient_scaler_skips_takes_its_loss_along(show: str, resets: str) -> None:
    loop = Loop(show)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflows in (True, True, False):
        before = loop.model.weight.detach().clone()
        scaler.scale(loop.shown(loop.loss(9.0 if overflows else 3.0))).backward()  # the loss is felt unscaled
        if overflows:
            loop.model.bias.grad = torch.tensor([torch.inf])
        scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)
        scaler.step(loop.optimizer)
        scaler.update()
        assert torch.equal(before, loop.model.weight) is overflows
        (loop.optimizer if resets == "optimizer" else loop.model).zero_grad()
    assert loop.felt == (pytest.approx(0.01 * 3.0 + 0.99 * 2.0), 2, 2)


def through(how: str) -> Callable[[Loop, float], None]:
    """Shows a loss that comes of a model which is compiled, or checkpointed."""

    def run(loop: Loop, value: float) -> None:
        inputs = torch.ones(1, 2, requires_grad=True)
        if how == "compiled":
            output = torch.compile(loop.model, backend="aot_eager")(inputs)
        else:
            output = checkpoint(loop.model, inputs, use_reentrant=how == "reentrant")
        loop.shown(output.sum() * 0.0 + value).backward()

    return run


def after_backward(loop: Loop, value: float) -> None:
    loss = loop.loss(value)
    loss.backward()
    loop.shown(loss)


def as_another_tensor(loop: Loop, value: float) -> None:
    loss = loop.loss(value)
    loop.shown(loss * 1.0)
    loss.backward()


def twice(loop: Loop, value: float) -> None:
    loss = loop.shown(loop.loss(value))
    loss.backward(retain_graph=True)
    loss.backward()


HOW: dict[str, Callable[[Loop, float], Any]] = {
    "shown after backward": after_backward,
    "another tensor of the same value": as_another_tensor,
    "within a larger loss": lambda loop, value: (loop.shown(loop.loss(value)) / 4 + loop.loss(1.0)).backward(),
    "by autograd.grad": lambda loop, value: torch.autograd.grad(
        loop.shown(loop.loss(value)), list(loop.model.parameters())
    ),
    "in two passes": twice,
    "changed in place": lambda loop, value: loop.shown(loop.loss(value)).div_(4).backward(),
    "compiled": through("compiled"),
    "checkpointed": through("not reentrant"),
    "checkpointed with a pass within the pass": through("reentrant"),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_loss_counts_however_backward_comes_to_it(how: Callable[[Loop, float], Any]) -> None:
    loop = Loop("observed")
    for _ in range(2):  # micro-batches of one step
        how(loop, 1.5)
    loop.ends_with(3.0)


@pytest.mark.parametrize("copied", [False, True])
def test_losses_shown_for_one_backward_pass_are_all_kept_when_gradients_are_reset_before_it(copied: bool) -> None:
    loop = Loop("observed")
    losses = [loop.loss(value) for value in (1.0, 2.0)]
    for loss in losses:
        loop.shown(loss * 1.0 if copied else loss)
    loop.optimizer.zero_grad()
    (losses[0] + losses[1]).backward()
    loop.ends_with(3.0)


def test_a_shown_loss_keeps_no_graph_alive_and_its_graph_no_optimizer() -> None:
    loop = Loop("observed")
    graph = weakref.ref(loop.shown(loop.loss(1.0)))
    assert graph() is None
    loss = loop.shown(loop.loss(1.0))
    optimizer = weakref.ref(loop.optimizer)
    del loop
    gc.collect()
    assert optimizer() is None
    assert loss == 1.0


def test_gradients_that_ddp_averages_later_are_not_taken_for_thrown_away(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        loop = Loop("observed")
        loop.model = DistributedDataParallel(loop.model)
        with loop.model.no_sync():
            loop.backward(1.0, 1.0)
        loop.backward(1.0)
        loop.ends_with(3.0)
    finally:
        torch.distributed.destroy_process_group()
