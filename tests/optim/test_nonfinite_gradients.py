"""Gradients that are NaN or infinite: their elements are left out, or the whole step, or nothing is done."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import emo_hf
from emo_hf import EmoOptimizer
from emo_hf.laws import Note
from emo_hf.optim.finite import count_not_finite, gradients_are_finite
from tests.emo_cases import IMPLEMENTATIONS, assert_identical, each_optimizer, held, lr_for, make, parameters, rule_of

Make = Callable[[nn.Module], Any]


def _own(model: nn.Module) -> Any:
    return emo_hf.EmoNavi(model.parameters(), lr=1e-2, emo_law="settle")


def _attached(model: nn.Module, **options: Any) -> Any:
    return emo_hf.attach(torch.optim.AdamW(model.parameters(), lr=1e-2), "settle", **options)


def _trained(make: Make, bad: float | None, *, clip: bool = False) -> tuple[Any, list[torch.Tensor]]:
    """What felt six steps, the fourth with one spoilt element, and the weights after each."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    emo = make(model)
    seen = []
    for step in range(6):
        model.zero_grad()
        loss = model(torch.full((2, 4), 1.0 + step)).square().mean()
        emo.observe(loss)
        loss.backward()
        if step == 3 and bad is not None:
            model.weight.grad[1, 2] = bad  # type: ignore[index]
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        getattr(emo, "optimizer", emo).step()
        seen.append(model.weight.detach().clone())
    return emo, seen


@pytest.mark.parametrize(
    ("make", "bad", "clip"),
    [(_own, math.nan, False), (_own, -math.inf, True), (_attached, math.inf, False), (_attached, math.nan, True)],
)
def test_settle_leaves_out_the_step_of_a_gradient_that_is_not_finite(make: Make, bad: float, clip: bool) -> None:
    emo, seen = _trained(make, bad, clip=clip)
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert seen[5].isfinite().all()
    assert emo.decisions[-1] == Note(4, "skipped", 1.0, "gradients that are not finite")
    state = getattr(emo, "optimizer", emo).state
    assert all(value.isfinite().all() for of_one in state.values() for value in of_one.values())


def test_without_its_guard_a_gradient_does_what_it_does_in_torch_and_a_clean_run_is_the_same() -> None:
    def unguarded(model: nn.Module) -> Any:
        return _attached(model, guard=False)

    assert _trained(unguarded, math.nan)[1][5].isnan().any()
    assert_identical(_trained(unguarded, None)[1], _trained(_attached, None)[1])


def test_large_gradients_of_any_type_are_finite_and_so_are_sparse_ones_and_none() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = nn.Parameter(torch.zeros(1000, dtype=dtype))
        weight.grad = torch.full_like(weight, torch.finfo(dtype).max)
        optimizer = torch.optim.SGD([weight, nn.Parameter(torch.zeros(0))], lr=1.0)
        assert gradients_are_finite(optimizer.param_groups)
        for bad in (math.nan, math.inf, -math.inf):
            weight.grad[7] = bad
            assert not gradients_are_finite(optimizer.param_groups)
    table = nn.Embedding(5, 2, sparse=True)
    sparse = torch.optim.SparseAdam(table.parameters())
    assert gradients_are_finite(sparse.param_groups)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert gradients_are_finite(sparse.param_groups)
    table.weight.grad._values()[0, 0] = math.nan  # type: ignore[union-attr]
    assert not gradients_are_finite(sparse.param_groups)


SPOILT = ((0, (1, 2)), (1, (3,)))
"""A parameter by its place, and the element of it whose gradient is spoilt."""


def _step(optimizer: EmoOptimizer, params: list[nn.Parameter], step: int, bad: float | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    for i, at in SPOILT if bad is not None else ():
        params[i].grad[at] = bad  # type: ignore[index]
    optimizer.observe(2.0 - 0.3 * step)
    optimizer.step()


def _trained_on_spoilt(
    cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, bad: float | None
) -> tuple[EmoOptimizer, list[list[torch.Tensor]]]:
    """An optimizer after three steps, the second with spoilt elements, and its parameters after each."""
    params = [nn.Parameter(param.detach().to(dtype)) for param in parameters(((6, 5), (40,)))]
    optimizer = make(cls, params, implementation, lr=lr_for(cls, 1e-2), compensate=dtype is not torch.float32)
    seen = []
    for step in range(3):
        _step(optimizer, params, step, bad if step == 1 else None)
        seen.append(held(params))
        if step == 1 and bad is not None:
            assert optimizer.metrics()["emo/nonfinite_gradients"] == len(SPOILT)
    return optimizer, seen


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize(("dtype", "bad"), [(torch.float32, math.nan), (torch.bfloat16, -math.inf)], ids=str)
@pytest.mark.parametrize(
    ("cls", "implementation"), [case for case in IMPLEMENTATIONS if case[1] not in ("sharded", "triton")]
)
def test_an_element_with_a_spoilt_gradient_stays_as_it_is_and_all_others_move_as_if_nothing_were(
    cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, bad: float
) -> None:
    optimizer, seen = _trained_on_spoilt(cls, implementation, dtype, bad)
    _, clean = _trained_on_spoilt(cls, implementation, dtype, None)
    rule = rule_of(cls)
    for i, at in SPOILT:
        if not rule.reads_group:  # Void pulls all of a group to its size before it steps
            assert seen[1][i][at] == seen[0][i][at]
        moved = (seen[1][i] != seen[0][i]).reshape(-1)
        assert int(moved.sum()) > 0.3 * moved.numel()  # a cautious rule leaves some where they are
        if rule.takes_parts():
            same = seen[2][i] == clean[2][i]
            same[at] = True
            assert bool(same.all())
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    assert all(bool(tensor.isfinite().all()) for tensor in (*seen[2], *state))


def test_the_state_of_a_spoilt_element_stays_as_it_is() -> None:
    for native in (None, False):
        params = parameters(((6, 5), (40,)))
        optimizer = emo_hf.EmoNavi(params, lr=1e-2, native=native)
        _step(optimizer, params, 0)
        before = [(value, value.clone()) for param in params for value in optimizer.state[param].values()]
        with pytest.warns(RuntimeWarning, match="gradients are NaN or infinite"):
            _step(optimizer, params, 1, math.nan)
        for (value, then), (_, at) in zip(before, [spoilt for spoilt in SPOILT for _ in range(2)], strict=True):
            assert int((value == then).sum()) == 1
            assert value[at] == then[at]


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("native", [None, False])
def test_rows_and_columns_are_measured_by_their_finite_gradients(native: bool | None) -> None:
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = emo_hf.EmoFact([param], lr=1e-2, native=native, betas=(0.0, 0.999))
    param.grad = torch.full((4, 3), 2.0)
    param.grad[1] = math.nan  # a whole row
    param.grad[2, 0] = math.inf
    optimizer.observe(1.0)
    optimizer.step()
    state = optimizer.state[param]
    torch.testing.assert_close(state["row_rms"].flatten(), torch.tensor([2.0, 0.0, 2.0, 2.0]))
    torch.testing.assert_close(state["column_rms"].flatten(), torch.full((3,), 2.0))
    assert bool((param[1] == 1).all())
    assert param[2, 0].item() == 1
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 4


@each_optimizer
def test_skip_step_moves_nothing_and_says_where_it_was(cls: type[EmoOptimizer]) -> None:
    params = parameters(((6, 5), (7,)))
    optimizer = cls([("first", params[0]), ("second", params[1])], lr=lr_for(cls, 1e-2), nonfinite="skip_step")
    _step(optimizer, params, 0)
    before = [param.detach().clone() for param in params]
    with pytest.warns(RuntimeWarning, match=r"by step 2: first \(1 elements\), second \(1 elements\)"):
        _step(optimizer, params, 1, math.nan)
    assert all(map(torch.equal, params, before))
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 2
    _step(optimizer, params, 2)
    assert not any(map(torch.equal, params, before))


def test_propagate_is_what_torch_does_and_else_it_is_warned_of_once_or_when_it_is_logged() -> None:
    params = parameters(((6, 5), (7,)))
    optimizer = emo_hf.EmoNavi(params, lr=1e-2, nonfinite="propagate")
    _step(optimizer, params, 0, math.nan)
    assert bool(params[0][1, 2].isnan())
    assert "emo/nonfinite_gradients" not in optimizer.metrics()

    params = parameters(((6, 5), (7,)))
    optimizer, on_gpu = emo_hf.EmoNavi(params, lr=1e-2), emo_hf.EmoNavi(parameters(), lr=1e-2)
    with pytest.warns(RuntimeWarning, match=r"gradients are NaN or infinite.*parameter 0 of group_0 \(1 elements\)"):
        _step(optimizer, params, 0, math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _step(optimizer, params, 1, math.inf)
        on_gpu._engine.left_out.counter(torch.device("cpu")).add_(4)  # as kernels on a GPU do
        _step(on_gpu, on_gpu.param_groups[0]["params"], 0)
    with pytest.warns(RuntimeWarning, match="NaN or infinite by step 1: they are gone by now"):
        assert on_gpu.metrics()["emo/nonfinite_gradients"] == 4
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 4


# Norms that say whether gradients are finite


class Calls(TorchDispatchMode):
    """Counts the calls of an operator, and notes the elements of the largest tensor that any operator made."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.count, self.largest = name, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.startswith(self.name)
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.__name__.startswith(("split", "detach")):
            self.largest = max(self.largest, made.numel())
        return made


OPTIONS: dict[str, Make] = {
    "attached": lambda model: emo_hf.attach(torch.optim.SGD(model.parameters(), lr=1e-2), "settle"),
    "skip_step": lambda model: emo_hf.EmoNavi(model.parameters(), lr=1e-2, nonfinite="skip_step"),
    "leave_out": lambda model: emo_hf.EmoNavi(model.parameters(), lr=1e-2, fused=True),
}


def _clipped(kind: str, *names: str) -> tuple[nn.Linear, Any]:
    """A model, and what felt its loss and saw the norm of the gradients of some parameters."""
    model = nn.Linear(4, 3)
    emo = OPTIONS[kind](model)
    params = [getattr(model, name) for name in names]
    model(torch.ones(2, 4)).square().mean().backward()
    emo.observe(1.0)
    emo.saw_gradient_norm(nn.utils.clip_grad_norm_(params, 1.0), params)
    return model, emo


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_norm_that_clipping_has_taken_spares_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_hf.optim.finite.counts_not_finite", lambda tensors: None)  # as without a compiler
    for is_told in (True, False):
        _, emo = _clipped(kind, "weight", "bias")
        if not is_told:
            emo._engine._norm = None
        with Calls("_foreach_norm") as calls:
            getattr(emo, "optimizer", emo).step()
        assert calls.count == int(not is_told)


def _write(model: nn.Linear) -> None:
    model.weight.grad[1] = math.nan  # type: ignore[index]


def _again(model: nn.Linear) -> None:
    model.zero_grad()
    (model(torch.ones(2, 4)).mean() * math.inf).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # another gradient, written to as often


SINCE: dict[str, Callable[[nn.Linear], Any]] = {
    "backward": lambda model: (model(torch.ones(2, 4)).mean() * math.inf).backward(),
    "exchanged": lambda model: setattr(model.weight, "grad", torch.full_like(model.weight, math.nan)),
    "written": _write,
    "reset": _again,
}


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("kind", ["attached", "leave_out"])
@pytest.mark.parametrize("since", [*SINCE, "partly"])
def test_a_norm_of_other_gradients_says_nothing(kind: str, since: str) -> None:
    model, emo = _clipped(kind, *(["bias"] if since == "partly" else ["weight", "bias"]))
    before = model.weight.detach().clone()
    SINCE.get(since, _write)(model)
    getattr(emo, "optimizer", emo).step()
    assert model.weight.isfinite().all()
    assert torch.equal(model.weight[1], before[1])


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float32, False), (torch.float16, True)], ids=str)
def test_a_norm_that_overflows_is_no_reason_to_leave_anything_out(
    kind: str, dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr("emo_hf.optim.finite.counts_not_finite", lambda tensors: None)
    model = nn.Linear(4, 3).to(dtype)
    before = model.weight.detach().clone()
    emo = OPTIONS[kind](model)
    for param in model.parameters():
        param.grad = torch.full_like(param, torch.finfo(dtype).max)
    emo.observe(1.0)
    getattr(emo, "optimizer", emo).step()
    assert not (model.weight == before).any()
    assert emo.metrics().get("emo/nonfinite_gradients", 0) == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_elements_are_named_with_bounded_memory(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_hf.optim.finite.PIECE", 1000)
    param = nn.Parameter(torch.ones(300, 200))
    param.grad = torch.ones(200, 300).t() if transposed else torch.ones(300, 200)
    param.grad[7, 150] = math.nan
    with Calls("abs") as calls:
        assert count_not_finite(torch.optim.SGD([("w", param)]).param_groups) == {"w": 1}
    assert calls.count >= 60
    assert calls.largest <= 1000
