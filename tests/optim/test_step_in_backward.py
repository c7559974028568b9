"""Steps in backward: the same as ordinary steps to the last bit, the gradients gone, and what does not go together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import emo_hf
from emo_hf import EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.laws import LAWS
from tests.emo_cases import OPTIMIZERS, assert_identical, losses, lr_for, rule_of, snapshot, through_a_file

FITTING = [cls for cls in OPTIMIZERS if not rule_of(cls).reads_group]
OTHERS = [cls for cls in OPTIMIZERS if rule_of(cls).reads_group]
STEPS = 10
VARIANTS: list[dict[str, Any]] = [
    {},
    {"maximize": True, "use_shadow": True},
    {"native": False, "fused": False, "average_weights": True},
]
SAME = [
    *((cls, VARIANTS[number % 3]) for number, cls in enumerate(FITTING)),
    *((EmoNavi, options) for options in VARIANTS[1:]),
    *((EmoNavi, {"emo_law": law} | ({"guard": False} if "guard" in LAWS[law].options else {})) for law in LAWS),
]
"""Optimizers and options with which steps in backward are ordinary steps."""


class Tied(nn.Module):
    """A model with a weight that is used twice, a matrix that is frozen, and tensors of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(4, 6, bias=False)
        self.frozen = nn.Linear(6, 6)
        self.middle = nn.Linear(6, 6)
        self.last = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.middle(torch.tanh(self.frozen(self.embedding(x)))))
        return self.last(inner @ self.embedding.weight) * self.scale


def build(cls: type[EmoOptimizer], dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Tied, EmoOptimizer]:
    model, lr = Tied().to(dtype), lr_for(cls, 0.01)
    named = dict(model.named_parameters())
    rest = [named.pop(name) for name in ("last.weight", "last.bias", "scale")]
    groups = [{"params": list(named.values())}, {"params": rest, "lr": lr / 4, "name": "rest", "weight_decay": 0.0}]
    return model, cls(groups, lr=lr, weight_decay=0.1, **options)


def armed(**options: Any) -> tuple[Tied, EmoOptimizer]:
    return build(EmoNavi, step_in_backward=True, **options)


def train(model: nn.Module, optimizer: EmoOptimizer, first: int = 0, last: int = STEPS, clip: float = 0.0) -> None:
    """Steps on batches and losses that depend on their number alone."""
    shown = losses(last)
    for t in range(first, last):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(t)).to(next(model.parameters()).dtype)
        optimizer.observe(shown[t])
        model(x).square().mean().backward()
        if clip:
            nn.utils.clip_grad_value_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("cls", "options"), SAME)
def test_steps_in_backward_are_ordinary_steps_to_the_last_bit_also_of_what_is_unfrozen_later(
    cls: type[EmoOptimizer], options: dict[str, Any]
) -> None:
    runs = []
    for in_backward in (False, True):
        model, optimizer = build(cls, **options)
        if in_backward:
            emo_hf.step_in_backward(model, optimizer)
        train(model, optimizer)
        model.frozen.weight.requires_grad_(True)
        train(model, optimizer, STEPS, 40)
        assert optimizer.emotion.observations == 40
        runs.append((snapshot(optimizer), optimizer.effective_lr))
    assert_identical(*runs)


@pytest.mark.parametrize(
    "options", [{"compensate": True}, {"state": "8bit"}, {"state": "8bit", "compensate": "8bit"}], ids=str
)
def test_low_precision_moves_in_backward_as_it_does_afterwards(options: dict[str, Any]) -> None:
    runs = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 64)).bfloat16()
        optimizer = EmoNavi(model.parameters(), lr=0.01, step_in_backward=in_backward, **options)
        train(model, optimizer)
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


def test_no_gradient_outlives_the_moment_in_which_its_parameter_moves() -> None:
    model, optimizer = build(EmoNavi)
    handle = emo_hf.step_in_backward(model, optimizer)
    held = []
    for param in model.parameters():
        if param.requires_grad:
            # After ours: it sees what is left when one parameter has been dealt with.
            param.register_post_accumulate_grad_hook(
                lambda _: held.append(sum(param.grad is not None for param in model.parameters()))
            )
    train(model, optimizer, last=1)
    assert held == [0] * sum(param.requires_grad for param in model.parameters())
    handle.remove()
    handle.remove()
    held.clear()
    train(model, optimizer, last=1)
    assert held == list(range(1, len(held) + 1))


def test_a_run_goes_on_from_its_checkpoint_to_the_last_bit() -> None:
    model, optimizer = build(EmoLynx)
    train(model, optimizer, last=2 * STEPS)
    first_model, first = build(EmoLynx, step_in_backward=True)
    train(first_model, first)
    saved = through_a_file({"model": first_model.state_dict(), "optimizer": first.state_dict()})
    again_model, again = build(EmoLynx, step_in_backward=True)
    again_model.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(again_model, again, STEPS, 2 * STEPS)
    assert_identical(snapshot(again), snapshot(optimizer))


def test_gradients_are_clipped_by_value_before_they_are_used() -> None:
    model, optimizer = build(EmoNavi)
    train(model, optimizer, clip=0.01)
    other_model, other = build(EmoNavi)
    emo_hf.step_in_backward(other_model, other, clip_value=0.01)
    train(other_model, other)
    assert_identical(snapshot(other), snapshot(optimizer))
    unclipped_model, unclipped = armed()
    train(unclipped_model, unclipped)
    assert not torch.equal(unclipped_model.last.weight, other_model.last.weight)


def test_an_element_whose_gradient_is_not_finite_is_left_out_and_its_parameter_named() -> None:
    runs = []
    for in_backward in (False, True):
        model = nn.Linear(2, 2)
        nn.init.ones_(model.weight)
        nn.init.ones_(model.bias)
        optimizer = EmoNavi(model.named_parameters(), lr=0.1, step_in_backward=in_backward)

        def step(model: nn.Linear = model, optimizer: EmoOptimizer = optimizer) -> None:
            optimizer.observe(1.0)
            model(torch.tensor([[float("inf"), 1.0]])).sum().backward()
            optimizer.step()

        with pytest.warns(RuntimeWarning, match=r"NaN or infinite by step 1: weight \(2 elements\)"):
            step()
        assert torch.equal(model.weight[:, 0], torch.ones(2))
        assert (model.weight[:, 1] != 1.0).all()
        runs.append(snapshot(optimizer))
    assert_identical(*runs)


@pytest.mark.parametrize("cls", OTHERS)
def test_a_rule_that_looks_at_whole_groups_is_refused(cls: type[EmoOptimizer]) -> None:
    model, optimizer = build(cls)
    with pytest.raises(ValueError, match=f"the rule of {cls.__name__} .* looks at a whole parameter group"):
        emo_hf.step_in_backward(model, optimizer)
    model.last(torch.ones(1, 4)).sum().backward()
    with pytest.raises(ValueError, match="looks at a whole parameter group"):
        optimizer.step_param(model.last.weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: armed(emo_law="settle"), "guard=True of emo_law='settle' .* take guard=False"),
        (lambda: armed(nonfinite="skip_step"), "nonfinite='skip_step' .* take nonfinite='leave_out'"),
        (lambda: armed(clip_value=-1.0), "clip_value=-1.0 .* it takes a number above 0"),
        (lambda: armed(clip_value=0), "clip_value=0 .* it takes a number above 0"),
        (lambda: build(EmoNavi, clip_value=1.0), r"clip_value=1.0 is for step_in_backward=True"),
        (
            lambda: emo_hf.step_in_backward(*build(EmoNavi), clip_value=0.0),
            r"clip_value=0.0 .* it takes a number above 0",
        ),
        (lambda: emo_hf.step_in_backward(nn.Linear(2, 2), armed()[1]), "has none of the model's parameters"),
        (lambda: emo_hf.step_in_backward(Tied(), torch.optim.AdamW(Tied().parameters())), "emo optimizer.*got AdamW"),
    ],
)
def test_what_needs_all_gradients_or_is_no_emo_optimizer_of_this_model_is_refused_by_name(
    make: Any, said: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()


def test_a_state_whose_options_need_all_gradients_is_refused_before_anything_moves() -> None:
    model, careful = build(EmoNavi, nonfinite="skip_step")
    train(model, careful, last=1)
    other_model, other = armed()
    other.load_state_dict(careful.state_dict())
    before = copy.deepcopy(other_model.state_dict())
    with pytest.raises(ValueError, match="nonfinite='skip_step'"):
        train(other_model, other, 1, 2)
    assert_identical(dict(other_model.state_dict()), dict(before))


def test_what_comes_between_the_gradients_of_a_step_is_refused() -> None:
    model, optimizer = armed()
    optimizer.observe(1.0)
    with pytest.raises(RuntimeError, match="a micro-batch that is not the last"):
        optimizer.tap_loss(torch.tensor(1.0), last=False)
    with pytest.raises(RuntimeError, match="does not go together with DeepSpeed"):
        optimizer.tap_loss(torch.tensor(1.0), in_parts=True)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="A loss belongs before its own backward"):
        optimizer.observe(1.0)
    optimizer.step()
    optimizer.observe(1.0)
    assert optimizer.emotion.observations == 1
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(RuntimeError, match=r"a second gradient came for a parameter .* gradients are accumulated"):
        model(torch.ones(1, 4)).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_is_used_twice_in_reentrant_checkpoints_is_named_as_a_cause(reentrant: bool) -> None:
    layer = nn.Linear(4, 4)
    optimizer = EmoNavi(layer.parameters(), step_in_backward=True)
    inputs = torch.ones(1, 4, requires_grad=True)
    once = checkpoint(layer, inputs, use_reentrant=reentrant)
    loss = checkpoint(layer, once, use_reentrant=reentrant).sum()
    optimizer.observe(loss)
    if not reentrant:
        loss.backward()
        return
    with pytest.raises(RuntimeError, match=r"reentrant gradient checkpointing.*use_reentrant=False helps"):
        loss.backward()


def test_a_grad_scaler_is_refused() -> None:
    model, optimizer = armed()
    optimizer.observe(1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    with pytest.raises(RuntimeError, match="does not go together with a GradScaler"):
        scaler.step(optimizer)


def test_gradients_that_are_reset_before_the_step_end_it_with_a_warning() -> None:
    model, optimizer = armed()
    optimizer.observe(1.0)
    model(torch.ones(1, 4)).sum().backward()
    with pytest.warns(RuntimeWarning, match=r"the gradients were reset before optimizer.step\(\)"):
        optimizer.zero_grad()
    train(model, optimizer, last=1)
    assert optimizer.emotion.observations == 2


def test_parameters_that_were_replaced_since_move_as_usual_with_a_warning() -> None:
    _, optimizer = armed()
    optimizer.observe(1.0)
    fresh = [nn.Parameter(torch.ones(2)) for _ in optimizer.param_groups]
    for group, param in zip(optimizer.param_groups, fresh, strict=True):
        group["params"] = [param]
    (fresh[0] * fresh[1]).sum().backward()
    with pytest.warns(RuntimeWarning, match="no parameter moved in backward"):
        optimizer.step()
    assert all((param != 1.0).all() for param in fresh)


def test_the_optimizer_that_came_last_moves_the_parameters_and_one_that_is_gone_moves_none() -> None:
    model, former = armed()
    latter = EmoLynx(model.parameters(), lr=0.01, step_in_backward=True)
    train(model, latter, last=2)
    assert former.emotion.observations == 0
    assert latter.emotion.observations == 2
    del latter
    before = copy.deepcopy(model.state_dict())
    model(torch.ones(1, 4)).sum().backward()
    assert_identical(dict(model.state_dict()), dict(before))
    assert model.scale.grad is not None


def test_a_model_whose_parameters_move_in_backward_can_be_saved_and_copied() -> None:
    model, optimizer = armed()
    train(model, optimizer, last=1)
    for other in (copy.deepcopy(model), through_a_file(model, weights_only=False)):
        other(torch.ones(1, 4)).sum().backward()
        assert all((param.grad is not None) is param.requires_grad for param in other.parameters())
    twin = copy.deepcopy(optimizer)
    assert twin.emotion == optimizer.emotion
    twin.observe(1.0)
    twin.step()  # an ordinary one


def test_a_closure_that_shows_its_loss_first_takes_the_same_steps() -> None:
    runs = []
    for in_backward in (False, True):
        model, optimizer = build(EmoNavi, step_in_backward=in_backward)

        def closure(model: Tied = model, optimizer: EmoOptimizer = optimizer) -> float:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 4)).square().mean()
            optimizer.observe(loss)
            loss.backward()
            return loss.item()

        values = [optimizer.step(closure) for _ in range(4)]
        runs.append((values, snapshot(optimizer)))
    assert_identical(*runs)
