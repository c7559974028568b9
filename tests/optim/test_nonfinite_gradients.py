"""Gradients that are NaN or infinite: their elements are left out, or the whole step, or nothing is done."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import emo_hf
from emo_hf import EmoOptimizer
from emo_hf.laws import Note
from emo_hf.optim.finite import count_not_finite, gradients_are_finite
from tests.emo_cases import each_implementation, each_optimizer, lr_for, make, parameters

BAD = [math.nan, math.inf, -math.inf]


def _trained(make: Any, bad: float | None, *, clip: bool = False) -> tuple[torch.nn.Linear, Any, list[torch.Tensor]]:
    """Six steps, the fourth with one spoilt element, and the weights after each."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    emo = make(model)
    optimizer = getattr(emo, "optimizer", emo)
    seen = []
    for step in range(6):
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), 1.0 + step)).square().mean()
        emo.observe(loss)
        loss.backward()
        if step == 3 and bad is not None:
            model.weight.grad[1, 2] = bad  # type: ignore[index]
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return model, emo, seen


def _own(model: torch.nn.Module) -> Any:
    return emo_hf.EmoNavi(model.parameters(), lr=1e-2, emo_law="settle")


def _attached(model: torch.nn.Module) -> Any:
    return emo_hf.attach(torch.optim.AdamW(model.parameters(), lr=1e-2), "settle")


@pytest.mark.parametrize("make", [_own, _attached], ids=["emonavi", "attached"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
def test_settle_leaves_out_the_step_of_a_gradient_that_is_not_finite(make: Any, bad: float, clip: bool) -> None:
    _, emo, seen = _trained(make, bad, clip=clip)
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert seen[5].isfinite().all()
    assert emo.decisions[-1] == Note(4, "skipped", 1.0, "gradients that are not finite")
    inner = getattr(emo, "optimizer", emo)
    moments = [value for of_one in inner.state.values() for value in of_one.values() if torch.is_tensor(value)]
    assert all(value.isfinite().all() for value in moments)


def test_without_its_guard_the_gradient_does_what_it_does_in_torch() -> None:
    def unguarded(model: torch.nn.Module) -> Any:
        return emo_hf.attach(torch.optim.AdamW(model.parameters(), lr=1e-2), "settle", guard=False)

    _, _, seen = _trained(unguarded, math.nan)
    assert seen[5].isnan().any()


def test_a_clean_run_is_the_same_with_and_without_a_look_at_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, looked = _trained(_own, None)
    monkeypatch.setattr("emo_hf.laws.settle.Settle.guards_gradients", False)
    _, _, blind = _trained(_own, None)
    assert all(map(torch.equal, looked, blind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_gradients_of_any_type_are_finite(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.zeros(1000, dtype=dtype))
    weight.grad = torch.full_like(weight, torch.finfo(dtype).max)
    optimizer = torch.optim.SGD([weight, torch.nn.Parameter(torch.zeros(0))], lr=1.0)
    assert gradients_are_finite(optimizer)
    for bad in BAD:
        weight.grad[7] = bad
        assert not gradients_are_finite(optimizer)


def test_sparse_gradients_are_looked_at_and_none_is_fine() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    assert gradients_are_finite(optimizer)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert gradients_are_finite(optimizer)
    table.weight.grad._values()[0, 0] = math.nan  # type: ignore[union-attr]
    assert not gradients_are_finite(optimizer)


SPOILT = ((0, (1, 2)), (1, (3,)))
"""A parameter by its place, and the element of it whose gradient is spoilt."""


def _step(optimizer: EmoOptimizer, params: list[torch.nn.Parameter], step: int, bad: float | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    for i, at in SPOILT if bad is not None else ():
        params[i].grad[at] = bad  # type: ignore[index]
    optimizer.observe(2.0 - 0.3 * step)
    optimizer.step()


def _of_element(optimizer: EmoOptimizer, param: torch.nn.Parameter, at: tuple[int, ...]) -> list[torch.Tensor]:
    """An element and its state, where the state is one of elements."""
    state = [value for key, value in optimizer.state[param].items() if value.shape == param.shape and value.dim()]
    return [tensor[at].detach().clone() for tensor in (param, *state)]


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_implementation
def test_an_element_with_a_spoilt_gradient_and_its_state_stay_as_they_are_and_all_others_move(
    cls: type[EmoOptimizer], implementation: str, dtype: torch.dtype, bad: float
) -> None:
    if implementation in ("sharded", "triton"):
        pytest.skip("needs a mesh, or a device")
    params = [torch.nn.Parameter(param.detach().to(dtype)) for param in parameters(((6, 5), (40,)))]
    optimizer = make(cls, params, implementation, lr=lr_for(cls, 1e-2), compensate=dtype is not torch.float32)
    _step(optimizer, params, 0)
    kept = [_of_element(optimizer, params[i], at) for i, at in SPOILT]
    before = [param.detach().clone() for param in params]
    scale = float(params[0].detach().abs().sum())
    _step(optimizer, params, 1, bad)
    pulled = float(params[0].detach().abs().sum()) / scale if type(optimizer.rule).__name__ == "Void" else None
    for (i, at), then in zip(SPOILT, kept, strict=True):
        now = _of_element(optimizer, params[i], at)
        if pulled is None:  # Void pulls all of a group to its size before it steps
            assert all(map(torch.equal, now, then))
        moved = (params[i] != before[i]).reshape(-1)
        assert int(moved.sum()) > 0.3 * moved.numel()  # a cautious rule leaves some where they are
        assert bool(params[i].isfinite().all())
        assert all(bool(value.isfinite().all()) for value in optimizer.state[params[i]].values())
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 2
    _step(optimizer, params, 2)
    assert all(bool(param.isfinite().all()) for param in params)


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("native", [None, False])
@pytest.mark.parametrize("cls", [emo_hf.EmoNavi, emo_hf.EmoLynx])
def test_the_other_elements_move_as_if_nothing_were_spoilt(cls: type[EmoOptimizer], native: bool | None) -> None:
    results = []
    for bad in (None, math.nan):
        params = parameters(((40, 30), (7,)))
        optimizer = cls(params, lr=1e-2, native=native)
        for step in range(3):
            _step(optimizer, params, step, bad if step == 1 else None)
        results.append(params)
    for i, (clean, spoilt) in enumerate(zip(*results, strict=True)):
        same = clean == spoilt
        same[SPOILT[i][1]] = True
        assert bool(same.all())


@pytest.mark.filterwarnings("ignore:.*gradients are NaN or infinite")
@pytest.mark.parametrize("native", [None, False])
def test_rows_and_columns_are_measured_by_their_finite_gradients(native: bool | None) -> None:
    param = torch.nn.Parameter(torch.ones(4, 3))
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
    assert float(param[2, 0]) == 1
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


def test_propagate_is_what_torch_does() -> None:
    params = parameters(((6, 5), (7,)))
    optimizer = emo_hf.EmoNavi(params, lr=1e-2, nonfinite="propagate")
    _step(optimizer, params, 0, math.nan)
    assert bool(params[0][1, 2].isnan())
    assert "emo/nonfinite_gradients" not in optimizer.metrics()


def test_it_is_warned_of_once() -> None:
    params = parameters(((6, 5), (7,)))
    optimizer = emo_hf.EmoNavi(params, lr=1e-2)
    with pytest.warns(RuntimeWarning) as caught:
        _step(optimizer, params, 0, math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(1, 4):
            _step(optimizer, params, step, math.inf)
    assert len([w for w in caught if "gradients are NaN or infinite" in str(w.message)]) == 1
    assert "parameter 0 of group_0 (1 elements)" in str(caught[0].message)
    assert optimizer.metrics()["emo/nonfinite_gradients"] == 8


def test_what_a_kernel_counted_on_a_device_is_warned_of_when_it_is_logged() -> None:
    params = parameters(((6, 5), (7,)))
    optimizer = emo_hf.EmoNavi(params, lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _step(optimizer, params, 0)
        optimizer._engine.left_out.counter(torch.device("cpu")).add_(2)  # as kernels on a GPU do
        _step(optimizer, params, 1)
    with pytest.warns(RuntimeWarning, match="NaN or infinite by step 2: they are gone by now"):
        logged = optimizer.metrics()
    assert logged["emo/nonfinite_gradients"] == 2


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


OPTIONS: dict[str, Any] = {
    "attached": _attached,
    "skip_step": lambda model: emo_hf.EmoNavi(model.parameters(), lr=1e-2, nonfinite="skip_step"),
    "leave_out": lambda model: emo_hf.EmoNavi(model.parameters(), lr=1e-2, fused=True),
}


def _clipped(model: torch.nn.Linear, emo: Any, some: str = "both") -> None:
    params = {"both": [model.weight, model.bias], "weight": [model.weight], "bias": [model.bias]}[some]
    model(torch.ones(2, 4)).square().mean().backward()
    emo.observe(1.0)
    emo.saw_gradient_norm(torch.nn.utils.clip_grad_norm_(params, 1.0), params)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_norm_that_clipping_has_taken_spares_another(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_hf.optim.finite.counts_not_finite", lambda tensors: None)  # as without a compiler
    model = torch.nn.Linear(4, 3)
    emo = OPTIONS[kind](model)
    for told, norms in ((True, 0), (False, 1)):
        _clipped(model, emo)
        if not told:
            emo._engine._norm = None
        with Calls("_foreach_norm") as calls:
            getattr(emo, "optimizer", emo).step()
        assert calls.count == norms


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("since", ["backward", "exchanged", "written", "reset", "partly"])
def test_a_norm_of_other_gradients_says_nothing(kind: str, since: str) -> None:
    model = torch.nn.Linear(4, 3)
    emo = OPTIONS[kind](model)
    optimizer = getattr(emo, "optimizer", emo)
    _clipped(model, emo, "bias" if since == "partly" else "both")
    before = model.weight.detach().clone()
    if since == "backward":
        (model(torch.ones(2, 4)).mean() * math.inf).backward()
    elif since == "exchanged":
        model.weight.grad = torch.full_like(model.weight, math.nan)
    elif since == "written":
        model.bias.grad[1] = math.nan  # type: ignore[index]
        model.weight.grad[1] = math.nan  # type: ignore[index]
    elif since == "reset":
        model.zero_grad()
        (model(torch.ones(2, 4)).mean() * math.inf).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    else:
        model.weight.grad[1] = math.nan  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    assert model.weight.isfinite().all()
    assert torch.equal(model.weight[1], before[1])


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_norm_that_overflows_is_no_reason_to_leave_anything_out(kind: str, dtype: torch.dtype) -> None:
    model = torch.nn.Linear(4, 3).to(dtype)
    before = model.weight.detach().clone()
    by_sgd = emo_hf.attach(torch.optim.SGD(model.parameters(), lr=1e-2), "settle")
    emo = by_sgd if kind == "attached" else OPTIONS[kind](model)
    for param in model.parameters():
        param.grad = torch.full_like(param, torch.finfo(dtype).max)
    emo.observe(1.0)
    getattr(emo, "optimizer", emo).step()
    assert not (model.weight == before).any()
    assert emo.metrics().get("emo/nonfinite_gradients", 0) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_elements_are_named_with_bounded_memory(
    dtype: torch.dtype, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emo_hf.optim.finite.PIECE", 1000)
    param = torch.nn.Parameter(torch.ones(300, 200, dtype=dtype))
    param.grad = torch.ones(200, 300, dtype=dtype).t() if transposed else torch.ones(300, 200, dtype=dtype)
    param.grad[7, 150] = math.nan
    optimizer = torch.optim.SGD([("w", param)])
    with Calls("abs") as calls:
        assert count_not_finite(optimizer) == {"w": 1}
    assert calls.count >= 60
    assert calls.largest <= 1000


def test_nonfinite_takes_three_words() -> None:
    with pytest.raises(ValueError, match=r"nonfinite='ignore' .* it takes one of leave_out, skip_step, propagate"):
        emo_hf.EmoNavi(parameters(), nonfinite="ignore")
