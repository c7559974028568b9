"""One emotion for many optimizers, as torchao's `CPUOffloadOptimizer` (0.18) makes and steps them.

`OneEach` makes the calls that its source makes, without streams and pinned memory. The package itself refuses to work
without a GPU by an assertion; where it is installed, a process of its own runs it without assertions on the CPU, with
ordinary memory for pinned and events that have always happened.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import emo_hf
from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmoVoid
from tests.emo_cases import assert_identical, losses

STEPS = 10


class OneEach(torch.optim.Optimizer):
    """An optimizer for each large parameter, on a copy of it, and one for all small ones."""

    def __init__(self, params: Any, optimizer_class: Any, *, minimal_size: int = 20, **kwargs: Any) -> None:
        groups = list(params)
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        self.copies: dict[nn.Parameter, torch.Tensor] = {}
        self.each: dict[nn.Parameter, EmoOptimizer] = {}
        small: list[dict[str, Any]] = []
        self.small = None
        self.queue: list[nn.Parameter] = []
        for group in groups:
            params, kept = group.pop("params"), []
            for param in params:
                if not param.requires_grad:
                    continue
                if param.numel() < minimal_size:
                    kept.append(param)
                    continue
                self.copies[param] = copy = param.detach().clone()
                copy.grad = torch.empty_like(copy)
                param.register_post_accumulate_grad_hook(self._gradient_is_there)
                self.each[param] = optimizer_class([{"params": copy, **group}], **kwargs)
            if kept:
                small.append({"params": kept, **group})
        self.small_groups = small
        if small:
            self.small = optimizer_class(small, **kwargs)

    def _gradient_is_there(self, param: nn.Parameter) -> None:
        self.copies[param].grad.copy_(param.grad)
        self.queue.append(param)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        if self.small is not None:
            self.small.step()
        for param in self.queue:
            self.each[param].step()
            param.copy_(self.copies[param])
        self.queue.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for param in self.copies:
            param.grad = None
        if self.small is not None:
            self.small.zero_grad(set_to_none=set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return sum((optimizer.param_groups for optimizer in self.each.values()), start=self.small_groups)

    def state_dict(self) -> dict[str, Any]:
        return {
            "offloaded": [optimizer.state_dict() for optimizer in self.each.values()],
            **({"on-device": self.small.state_dict()} if self.small else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.each.values(), state["offloaded"], strict=True):
            optimizer.load_state_dict(saved)
        if self.small is not None:
            self.small.load_state_dict(state["on-device"])


def build() -> tuple[nn.Sequential, list[dict[str, Any]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0, "lr": 0.002},
    ]


def train(model: nn.Module, optimizer: Any, feels: Any, first: int = 0, last: int = STEPS) -> None:
    """Steps, and in a whole run a schedule: torchao hands out stale groups of small parameters once it has loaded."""
    shown = losses(last)
    schedule = LambdaLR(optimizer, lambda step: 1.0 / (1 + step)) if last - first == STEPS else None
    for step in range(first, last):
        feels.observe(shown[step])
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize(
    ("cls", "options"), [(EmoNavi, {}), (EmoFact, {"use_shadow": True}), (EmoLynx, {"emo_law": "robust"})]
)
def test_many_optimizers_with_one_emotion_take_the_steps_of_one(
    cls: type[EmoOptimizer], options: dict[str, Any]
) -> None:
    model, groups = build()
    alone = cls(groups, lr=0.01, **options)
    train(model, alone, alone)
    other_model, other_groups = build()
    one = emo_hf.sharing_one_emotion(cls)
    many = OneEach(other_groups, one, lr=0.01, **options)
    train(other_model, many, one)
    assert len(one.optimizers) == 3
    assert_identical(weights(other_model), weights(model))
    assert one.emotion == alone.emotion
    assert one.decision == alone.decision
    theirs, ours = one.metrics(), alone.metrics()
    assert {name: theirs[name] for name in ("emo/scalar", "emo/coefficient_mean")} == {
        name: ours[name] for name in ("emo/scalar", "emo/coefficient_mean")
    }


def test_a_counter_of_the_rule_goes_on_in_each_of_them() -> None:
    model, groups = build()
    alone = EmoNavi(groups, lr=0.01, bias_correction=True)
    train(model, alone, alone)
    other_model, other_groups = build()
    one = emo_hf.sharing_one_emotion(EmoNavi)
    train(other_model, OneEach(other_groups, one, lr=0.01, bias_correction=True), one)
    assert_identical(weights(other_model), weights(model))


def test_the_class_itself_would_leave_all_but_one_without_a_loss() -> None:
    """What it is for: every optimizer has an emotion of its own, and the loss would have to be shown to each."""
    model, groups = build()
    many = OneEach(groups, EmoNavi, lr=0.01)
    with pytest.warns(RuntimeWarning, match="was called without a loss"):
        train(model, many, many.small, last=1)


def test_a_run_goes_on_from_its_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    model, groups = build()
    one = emo_hf.sharing_one_emotion(EmoNavi)
    many = OneEach(groups, one, lr=0.01)
    train(model, many, one, last=5)
    torch.save({"model": model.state_dict(), "optimizer": many.state_dict()}, tmp_path / "saved.pt")
    train(model, many, one, 5, STEPS)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    again, groups = build()
    again.load_state_dict(saved["model"])
    resumed = emo_hf.sharing_one_emotion(EmoNavi)
    them = OneEach(groups, resumed, lr=0.01)
    them.load_state_dict(saved["optimizer"])
    assert resumed.emotion.observations == 5
    train(again, them, resumed, 5, STEPS)
    assert_identical(weights(again), weights(model))
    assert resumed.emotion == one.emotion


def test_a_step_without_a_loss_is_a_neutral_one_for_all_and_warned_of_once() -> None:
    model, groups = build()
    one = emo_hf.sharing_one_emotion(EmoNavi)
    many = OneEach(groups, one, lr=0.01)
    train(model, many, one, last=6)
    assert one.decision.coefficient != 1.0
    model(torch.ones(1, 4)).sum().backward()
    with pytest.warns(RuntimeWarning, match="was called without a loss") as said:
        many.step()
    assert len(said) == 1
    assert one.decision.coefficient == 1.0
    assert one.emotion.observations == 6


def test_what_needs_all_gradients_and_what_is_no_emo_optimizer_are_refused() -> None:
    with pytest.raises(TypeError, match="takes the class of an emo optimizer"):
        emo_hf.sharing_one_emotion(torch.optim.AdamW)
    with pytest.raises(RuntimeError, match="no optimizer has been made yet"):
        emo_hf.sharing_one_emotion(EmoNavi).observe(1.0)
    for cls, options, said in (
        (EmoVoid, {}, "looks at a whole parameter group"),
        (EmoNavi, {"emo_law": "settle"}, "take guard=False"),
        (EmoNavi, {"nonfinite": "skip_step"}, "nonfinite='skip_step'"),
        (EmoNavi, {"step_in_backward": True}, "leave step_in_backward out"),
    ):
        with pytest.raises(ValueError, match=said):
            OneEach(build()[1], emo_hf.sharing_one_emotion(cls), **options)
    one = emo_hf.sharing_one_emotion(EmoNavi)
    one(build()[1])
    with pytest.raises(ValueError, match="one emotion follows one law"):
        one(build()[1], emo_law="robust")


WITHOUT_A_DEVICE = """
    import sys
    import torch
    from torch.overrides import TorchFunctionMode
    from torchao.optim import CPUOffloadOptimizer
    import emo_hf
    from tests.integrations.test_torchao_offload import build, train, weights

    class Unpinned(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **{k: v for k, v in (kwargs or {}).items() if k != "pin_memory"})

    torch.cpu.Stream.record_event = lambda self, event=None: torch.cpu.Event()
    torch.cpu.Stream.synchronize = lambda self: None
    one = emo_hf.sharing_one_emotion(emo_hf.EmoNavi)
    model, groups = build()
    with Unpinned():
        optimizer = CPUOffloadOptimizer(groups, one, minimal_size=20, lr=0.01)
    train(model, optimizer, one)
    torch.save({"weights": weights(model), "optimizers": len(one.optimizers)}, sys.argv[1])
"""


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_torchaos_own_optimizer_takes_the_steps_of_one(tmp_path: Path) -> None:
    code, file = textwrap.dedent(WITHOUT_A_DEVICE), tmp_path / "result.pt"
    done = subprocess.run([sys.executable, "-O", "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(file)
    model, groups = build()
    alone = EmoNavi(groups, lr=0.01)
    train(model, alone, alone)
    assert found["optimizers"] == 3
    assert_identical(found["weights"], weights(model))
