"""What the constructors, `add_param_group` and the gradients may be, and what is said when they are not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from emo_hf import EmoLynx, EmoNavi, EmoOptimizer
from tests.emo_cases import (
    OPTIMIZERS,
    each_optimizer,
    each_rule,
    give_gradients,
    losses,
    parameters,
    rule_of,
    through_a_file,
)

WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"lr": -0.1}, "lr must be .*at least 0, got -0.1"),
    ({"lr": float("nan")}, "lr must be .*got nan"),
    ({"lr": float("inf")}, "lr must be .*got inf"),
    ({"lr": 10**400}, "lr must be a finite number"),
    ({"lr": "0.1"}, "lr must be .*got '0.1'"),
    ({"lr": True}, "lr must be .*got True"),
    ({"lr": torch.tensor(-1.0)}, "lr must be .*-1"),
    ({"lr": torch.ones(2)}, r"Tensor lr must be 1-element, got shape \(2,\)"),
    ({"eps": -1e-8}, "eps must be .*at least 0, got -1e-08"),
    ({"eps": None}, "eps must be .*got None"),
    ({"weight_decay": -0.5}, "weight_decay must be .*at least 0, got -0.5"),
    ({"weight_decay": [0.1]}, r"weight_decay must be .*got \[0.1\]"),
    ({"betas": (1.0, 0.999)}, r"beta1 must be in \[0, 1\), got 1.0"),
    ({"betas": (0.9, -0.1)}, r"beta2 must be in \[0, 1\), got -0.1"),
    ({"betas": (0.9, float("nan"))}, r"beta2 must be in \[0, 1\), got nan"),
    ({"betas": (0.9, None)}, r"beta2 must be .*got None"),
    ({"betas": (0.9, "0.99")}, r"beta2 must be .*got '0.99'"),
    ({"betas": (0.9,)}, r"betas must be a pair .*\(0.9,\)"),
    ({"betas": 0.9}, "betas must be a pair .*0.9"),
    ({"betas": {0.9, 0.99}}, "betas must be a pair"),
    ({"use_shadow": "no"}, "use_shadow='no' .* it takes true or false"),
    ({"maximize": 1}, "maximize=1 is not acceptable: it takes true or false"),
    ({"foreach": "yes"}, "foreach='yes' .* it takes true, false or auto"),
    ({"fused": "no"}, "fused='no' .* it takes"),
    ({"nonfinite": "ignore"}, "nonfinite='ignore' .* it takes one of leave_out, skip_step, propagate"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_a_wrong_option_is_named_with_its_value_and_what_is_accepted_in_groups_too(
    options: dict[str, Any], message: str
) -> None:
    for cls in OPTIMIZERS:
        with pytest.raises((ValueError, TypeError), match=message):
            cls(parameters(), **options)
    with pytest.raises((ValueError, TypeError), match=message):
        EmoLynx([{"params": parameters(), **options}])
    optimizer = EmoLynx(parameters())
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.add_param_group({"params": parameters(seed=1), **options})
    assert len(optimizer.param_groups) == 1


@each_optimizer
def test_options_at_the_edge_of_what_is_accepted_work(cls: type[EmoOptimizer]) -> None:
    for options in (
        {"lr": 0, "eps": 0},
        {"lr": torch.tensor(0.01), "weight_decay": np.float32(0)},
        {"lr": np.float64(0.01), "betas": [0.0, 0.0]},
        {"foreach": False, "fused": False},
    ):
        params = parameters()
        optimizer = cls(params, **options)  # type: ignore[arg-type]
        give_gradients(params, 0)
        optimizer.observe(1.0)
        optimizer.step()
        assert all(param.isfinite().all() for param in params)


@each_optimizer
def test_an_implementation_can_be_asked_for_only_where_it_exists(cls: type[EmoOptimizer]) -> None:
    for name in ("foreach", "fused", "native"):
        if name in rule_of(cls).implementations:
            params = parameters()
            give_gradients(params, 0)
            optimizer = cls(params, **{name: True})
            optimizer.observe(1.0)
            optimizer.step()
            assert not torch.equal(params[0], parameters()[0])
        else:
            with pytest.raises(ValueError, match=f"{cls.__name__} has no {name} implementation"):
                cls(parameters(), **{name: True})


@pytest.mark.parametrize("make_params", [iter, tuple, lambda params: (param for param in params)])
def test_parameters_may_come_from_any_ordered_iterable(make_params: Any) -> None:
    params = parameters()
    assert EmoNavi(make_params(params)).param_groups[0]["params"] == params
    assert EmoNavi([{"params": make_params(params)}]).param_groups[0]["params"] == params
    assert EmoNavi([{"params": params[0]}]).param_groups[0]["params"] == params[:1]


def test_empty_groups_are_left_out_because_distributed_checkpoints_cannot_load_them() -> None:
    groups: list[dict[str, Any]] = [{"params": []}, {"params": parameters(), "lr": 0.5}, {"params": iter([])}]
    optimizer = EmoNavi(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
    for empty in ([], (), iter([])):
        with pytest.raises(ValueError, match="the parameter group is empty"):
            optimizer.add_param_group({"params": empty})
    assert len(optimizer.param_groups) == 1


def test_named_parameters_are_accepted_and_keep_their_names() -> None:
    model = nn.Linear(2, 2)
    optimizer = EmoNavi(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@each_rule
def test_a_group_added_in_mid_run_trains_with_its_own_options_and_the_common_emotion(cls: type[EmoOptimizer]) -> None:
    first, late = parameters([(3, 4)]), parameters([(3, 4)], seed=1)
    optimizer = cls(first, lr=0.01)
    for step, loss in enumerate(losses(8)):
        if step == 4:
            optimizer.add_param_group({"params": late, "lr": 0.5, "weight_decay": 0.0, "name": "late"})
            with pytest.raises(ValueError, match="named 'late' already"):
                optimizer.add_param_group({"params": parameters(), "name": "late"})
        before = late[0].detach().clone()
        give_gradients([*first, *late], step)
        optimizer.observe(loss)
        optimizer.step()
        assert torch.equal(before, late[0]) == (step < 4)
    assert optimizer.param_groups[1]["betas"] == optimizer.defaults["betas"]
    size = optimizer.decision.step_size
    assert optimizer.effective_lr == pytest.approx({"group_0": size(0.01), "late": size(0.5)})
    assert optimizer.state[late[0]].keys() == optimizer.state[first[0]].keys()


@each_optimizer
def test_sparse_gradients_and_complex_parameters_are_refused_with_the_remedy(cls: type[EmoOptimizer]) -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    imaginary = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    imaginary.grad = torch.ones_like(imaginary)
    for param, said in (
        (embedding.weight, "sparse gradients: use sparse=False"),
        (imaginary, "complex .*view_as_real"),
    ):
        optimizer = cls([param])
        optimizer.observe(1.0)
        with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support {said}"):
            optimizer.step()


def test_maximize_climbs_where_the_default_descends() -> None:
    for cls in OPTIMIZERS:
        up, down = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        groups: list[dict[str, Any]] = [{"params": [up], "maximize": True}, {"params": [down]}]
        optimizer = cls(groups)
        up.grad, down.grad = torch.ones(3), torch.ones(3)
        optimizer.observe(1.0)
        optimizer.step()
        assert (up > 0).all()
        torch.testing.assert_close(up, -down)
        assert torch.equal(up.grad, torch.ones(3))


@pytest.mark.parametrize("rate", [np.float64(0.1), Fraction(1, 10), np.float32(0.5)], ids=repr)
def test_numbers_of_any_kind_become_floats_that_a_checkpoint_can_hold(rate: Any) -> None:
    optimizer = EmoNavi([torch.nn.Parameter(torch.zeros(2))], lr=rate, betas=(rate, rate), eps=rate)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate})
    for group in through_a_file(optimizer.state_dict())["param_groups"]:
        assert {type(group["lr"]), type(group["eps"]), *map(type, group["betas"])} == {float}


def head_twice(params: list[nn.Parameter]) -> EmoOptimizer:
    return EmoNavi([{"params": [param], "name": "head"} for param in params])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda params: EmoNavi(params, foreach=True, fused=True), "foreach and fused cannot both be True: choose"),
        (lambda params: EmoNavi([]), "empty parameter list"),
        (lambda params: EmoNavi(iter([])), "empty parameter list"),
        (lambda params: EmoNavi([{"params": []}, {"params": iter([])}]), "empty parameter list"),
        (lambda params: EmoNavi(params[0]), "params argument given to the optimizer should be an iterable"),
        (lambda params: EmoNavi({"params": params}), "params argument given to the optimizer should be an iterable"),
        (lambda params: EmoNavi(set(params)), "got set: put it into a list"),
        (lambda params: EmoNavi([{"params": set(params)}]), "ordered collections"),
        (lambda params: EmoNavi([{"x": 1}]), r"needs 'params', and this has \['x'\]"),
        (lambda params: EmoNavi(params).add_param_group({"x": 1}), r"needs 'params', and this has \['x'\]"),
        (head_twice, "named 'head' already"),
        (lambda params: EmoNavi(params, step_in_backward="x"), "step_in_backward='x' .* it takes true or false"),
        (lambda params: EmoNavi(params, emo_law=[]), r"emo_law=\[\] .* it takes one of v3.0"),
        (lambda params: EmoNavi(params, emo_law="settle", ease=True), "no option ease; .*evaluation_patience"),
        (lambda params: EmoNavi(params).observe(1.0, weight="x"), "weight must be a positive number, got 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(make: Callable[[Any], Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make(parameters())


def test_parameters_without_a_shape_are_shown_as_such() -> None:
    assert "2 of them without a shape yet" in repr(EmoNavi(torch.nn.LazyLinear(3).parameters()))


def test_keys_of_others_in_the_state_of_a_parameter_are_named() -> None:
    (param,) = parameters([(2,)])
    optimizer = EmoNavi([param])
    optimizer.state[param]["z"] = torch.zeros(2)
    param.grad = torch.ones(2)
    optimizer.observe(1.0)
    with pytest.raises(RuntimeError, match=r"lacks 'exp_avg' and has \['z'\]: something else, a wrapper perhaps"):
        optimizer.step()
