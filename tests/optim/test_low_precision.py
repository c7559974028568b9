"""Parameters and state in fewer than 32 bits: what is kept, that it trains, resumes, and crosses to other ways."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf import EmoAiry, EmoCats, EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmoTion, EmoVoid
from emo_hf.optim.kernels import build
from emo_hf.optim.precision import low
from emo_hf.optim.precision.eight_bits import BLOCK, SIZES, SMALLEST, decode, join
from emo_hf.optim.state_keys import COMPENSATION, EXP_AVG, EXP_AVG_SQ
from tests.emo_cases import OF_EACH_RULE, assert_identical, each_rule, held, lr_for, run, through_a_file

BOTH: dict[str, Any] = {"state": "8bit", "compensate": "8bit"}
IN_8_BITS: list[type[EmoOptimizer]] = [EmoNavi, EmoLynx, EmoCats, EmoTion]
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")


def final_error(cls: type[EmoOptimizer], dtype: torch.dtype, **options: Any) -> float:
    """Mean square error of a small network after 1000 steps at a small rate; the weights are read in float32."""
    torch.manual_seed(0)
    width = SMALLEST // 16 if "state" in options else 64
    teacher, model = (nn.Sequential(nn.Linear(16, w), nn.Tanh(), nn.Linear(w, 1)) for w in (64, width))
    inputs = torch.randn(1024, 16)
    targets = 3 * teacher(inputs).detach()
    options = {name: value for name, value in options.items() if value is not None}
    optimizer = cls(model.to(dtype).parameters(), lr=1e-4, **options)
    for t in range(1000):
        batch = slice(64 * (t % 16), 64 * (t % 16) + 64)
        loss = (model(inputs[batch].to(dtype)).float() - targets[batch]).square().mean()
        optimizer.zero_grad()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model.float()(inputs) - targets).square().mean())


@pytest.mark.parametrize(
    ("cls", "options", "at_least"),
    [
        (EmoNavi, {"compensate": True}, 1.2),
        (EmoFact, {"compensate": True, "native": False}, 5.0),
        (EmoLynx, BOTH, 1.2),
    ],
)
def test_compensated_training_ends_where_float32_does_and_in_plain_bfloat16_does_not(
    cls: type[EmoOptimizer], options: dict[str, Any], at_least: float
) -> None:
    nothing = dict.fromkeys(options)
    exact = final_error(cls, torch.float32, **nothing)
    assert final_error(cls, torch.bfloat16, **options) == pytest.approx(exact, rel=0.1 if options == BOTH else 0.05)
    assert final_error(cls, torch.bfloat16, **nothing) > at_least * exact


def low_params(dtype: torch.dtype, *, large: bool = False) -> list[nn.Parameter]:
    """Some parameters; `large` ones of which two are kept in 8 bits."""
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(80, 70), (5,), (SMALLEST + 3,)] if large else [(6, 5), (7,), (2, 3, 4)]
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


RESUMED: list[tuple[type[EmoOptimizer], torch.dtype, dict[str, Any]]] = [
    *[(cls, (torch.bfloat16, torch.float16)[i % 2], {"compensate": True}) for i, cls in enumerate(OF_EACH_RULE)],
    *[(cls, torch.bfloat16, BOTH) for cls in IN_8_BITS],
    (EmoLynx, torch.float16, {"compensate": True, "native": False}),
    (EmoNavi, torch.bfloat16, BOTH | {"native": False}),
]


@pytest.mark.parametrize(("cls", "dtype", "options"), RESUMED)
def test_a_run_resumes_to_the_last_bit_and_working_on_less_at_a_time_changes_none(
    cls: type[EmoOptimizer], dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"lr": lr_for(cls, 1e-3), **options}
    params = low_params(dtype, large="state" in options)
    optimizer = cls(params, **options)
    run(optimizer, range(4))
    resumed_params = [nn.Parameter(param) for param in held(params)]
    resumed = cls(resumed_params, **options)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    clone = copy.deepcopy(resumed)
    run(optimizer, range(4, 8))
    monkeypatch.setattr(low, "ELEMENTS_IN_CACHES", 4 * BLOCK if "state" in options else 4)
    for one in (resumed, clone):
        run(one, range(4, 8))
        assert_identical(optimizer.state_dict(), one.state_dict())
    assert all(map(torch.equal, params, resumed_params))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", IN_8_BITS)
def test_kernels_and_torch_keep_the_same_codes(cls: type[EmoOptimizer], dtype: torch.dtype) -> None:
    kept = []
    for native in (True, False):
        params = low_params(dtype, large=True)
        optimizer = cls(params, lr=lr_for(cls, 1e-3), state="8bit", native=native)
        run(optimizer, range(3))
        kept.append([optimizer.state[param] for param in params])
    for by_kernel, by_torch in zip(*kept, strict=True):
        assert by_kernel.keys() == by_torch.keys()
        for key, codes in by_kernel.items():
            different = (codes.float() - by_torch[key].float()).abs()
            if codes.dtype in (torch.int8, torch.uint8):  # sums are rounded in another order: a code may be the next
                assert float(different.max()) <= 1
                assert float((different > 0).float().mean()) < 1e-3
            else:
                torch.testing.assert_close(codes, by_torch[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_moved_in_float32_by_our_kernel_and_torchs_fused_one_and_where_strides_differ(
    dtype: torch.dtype,
) -> None:
    """torch's fused kernel cannot take unequal strides; what does has to round no more often than it."""
    chosen, fused, turned = (low_params(dtype, large=True) for _ in range(3))
    turned[0].data = turned[0].data.t().contiguous().t()  # its gradients will not be
    run(EmoNavi(chosen, lr=1e-3), range(8))
    run(EmoNavi(fused, lr=1e-3, fused=True), range(8))
    run(EmoNavi(turned, lr=1e-3), range(8))
    for other in (fused, turned):
        same = torch.cat([(one == two).flatten() for one, two in zip(chosen, other, strict=True)])
        assert float(same.float().mean()) > 0.98


@pytest.mark.parametrize(
    ("cls", "dtype", "options", "per_element"),
    [
        (EmoNavi, torch.float32, {"compensate": True}, 8),  # which is not compensated
        (EmoLynx, torch.float32, {}, 4),
        (EmoFact, torch.float32, {}, 0),
        (EmoAiry, torch.float32, {}, 0),
        (EmoVoid, torch.float32, {"compensate": True}, 0),
        (EmoNavi, torch.bfloat16, {}, 4),
        (EmoNavi, torch.float16, {"compensate": True}, 10),
        (EmoLynx, torch.bfloat16, {"compensate": True}, 6),
        (EmoFact, torch.bfloat16, {"compensate": True}, 2),
        (EmoNavi, torch.bfloat16, BOTH, 3),
        (EmoLynx, torch.bfloat16, BOTH, 2),
    ],
)
def test_the_state_takes_the_bytes_that_are_stated(
    cls: type[EmoOptimizer], dtype: torch.dtype, options: dict[str, Any], per_element: int
) -> None:
    params = low_params(dtype, large=True)
    optimizer = cls(params, **options)
    run(optimizer, range(1))
    state, n = optimizer.state[params[0]], params[0].numel()
    sizes = sum(4 * -(-n // BLOCK) for key in state if key.endswith(SIZES))
    rows_and_columns = 4 * (80 + 70) if cls is EmoFact else 0
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert size == per_element * n + sizes + rows_and_columns
    if options == BOTH:  # small tensors keep floats
        assert optimizer.state[params[1]][EXP_AVG].dtype is torch.float32
        assert cls is not EmoNavi or state[EXP_AVG_SQ].dtype is torch.uint8


def with_rest(param: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """What a parameter and its compensation hold together."""
    return join(param, rest) if rest.dtype is torch.int8 else param.detach().float() + rest


@pytest.mark.parametrize(("dtype", "how"), [(torch.float16, True), (torch.bfloat16, "8bit")])
@each_rule
def test_a_parameter_that_becomes_float32_takes_up_its_compensation(
    cls: type[EmoOptimizer], dtype: torch.dtype, how: Any
) -> None:
    params = low_params(dtype)
    optimizer = cls(params, lr=lr_for(cls, 1e-3), compensate=how)
    run(optimizer, range(4))
    kept_in = [optimizer.state[param][COMPENSATION].dtype for param in params]
    wide = [with_rest(param, optimizer.state[param][COMPENSATION]) for param in params]
    for param in params:
        param.data, param.grad = param.data.float(), None
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, range(4, 5))
    if cls is not EmoVoid:  # which pulls the group to a size
        assert all(map(torch.equal, params, wide))
    assert all(COMPENSATION not in optimizer.state[param] for param in params)
    for param in params:
        param.data, param.grad = param.data.to(dtype), None
    run(optimizer, range(5, 7))
    assert [optimizer.state[param][COMPENSATION].dtype for param in params] == kept_in


WAYS: list[dict[str, Any]] = [{}, {"state": "8bit"}, {"compensate": True}, {"compensate": "8bit"}, BOTH]


@pytest.mark.parametrize("there", WAYS, ids=str)
def test_a_state_crosses_from_any_way_of_keeping_it_to_any_other(
    there: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    saved_params = low_params(torch.bfloat16, large=True)
    saved = EmoNavi(saved_params, lr=1e-3, **there)
    run(saved, range(3))
    for here in WAYS:
        params = [nn.Parameter(param) for param in held(saved_params)]
        loaded, wanted = (EmoNavi(params, lr=1e-3, **here) for _ in range(2))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded.load_state_dict(saved.state_dict())
        assert ("kept in another way" in caplog.text) is (there != here)
        for param, before in zip(params, saved_params, strict=True):
            now, then = loaded.state[param], saved.state[before]
            like = wanted._buckets.first_state(wanted.param_groups[0], param)
            assert {k: (v.dtype, v.shape) for k, v in now.items()} == {k: (v.dtype, v.shape) for k, v in like.items()}
            for key in (EXP_AVG, EXP_AVG_SQ):
                one, other = (
                    decode(s[key], s[key + SIZES]) if key + SIZES in s else s[key].float() for s in (now, then)
                )
                assert float((one - other).abs().max()) <= 0.0625 * float(other.abs().max())
            if there.get("compensate") and there.get("compensate") == here.get("compensate"):
                assert torch.equal(now[COMPENSATION], then[COMPENSATION])
        run(loaded, range(3, 5))
        assert all(bool(param.isfinite().all()) for param in params)
        assert not any(map(torch.equal, params, saved_params))


def test_what_cannot_be_kept_in_8_bits_says_so() -> None:
    with pytest.raises(ValueError, match=r"state='8bit': EmoFact v3\.1 keeps no averages that 8 bits would make"):
        EmoFact(low_params(torch.float32), state="8bit")
    with pytest.raises(ValueError, match="it takes one of 8bit"):
        EmoNavi(low_params(torch.float32), state="4bit")
    with pytest.raises(ValueError, match=r"compensate=8 .* it takes true, false or 8bit"):
        EmoNavi(low_params(torch.float32), compensate=8)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="is for bfloat16, and a parameter is float16: take compensate=True"):
        run(EmoNavi(low_params(torch.float16), compensate="8bit"), range(1))
