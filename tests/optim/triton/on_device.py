"""What the Triton kernels compute, against the same in torch, and which of them are trusted.

`test_kernels.py` runs this on a GPU, or under Triton's interpreter in main memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emo_hf import EmoAiry, EmoClan, EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmoVoid
from emo_hf.optim.kernels.gpu import launch, trust
from emo_hf.optim.kernels.gpu.available import is_interpreted
from emo_hf.optim.kernels.tensors import KernelTensors
from emo_hf.optim.left_out import LeftOut
from emo_hf.optim.precision import low
from emo_hf.optim.precision.eight_bits import BLOCK, SIZES, SMALLEST, encode, join, split
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.sign import Sign
from emo_hf.optim.state_keys import COMPENSATION, EXP_AVG, EXP_AVG_SQ
from emo_hf.optim.update import Bucket, Hyperparameters, StateOfPart
from tests.emo_cases import losses, lr_for, make, parameters

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
H = Hyperparameters(lr=3e-4, decay=2e-2, beta1=0.9, beta2=0.99, eps=1e-8, seed=12345)
PIECE = launch.BLOCK * launch.BLOCKS
SHAPES: list[tuple[int, ...]] = [(3, 16), (), (BLOCK - 1,), (PIECE,), (PIECE + BLOCK + 5,), (40, 260), (300, 5)]
SPOILT = [(0, (2, 3), math.nan), (4, (PIECE + BLOCK,), -math.inf), (5, (39, 259), math.inf)]
"""A parameter by its place, and an element of it whose gradient is spoilt, the last of a masked region."""

BFLOAT16: dict[str, Any] = {"dtype": torch.bfloat16}
IN_8_BITS: dict[str, Any] = BFLOAT16 | {"state": "8bit", "compensate": "8bit"}


def give_gradients(params: Sequence[Tensor], step: int) -> None:
    """Gradients that depend on the step alone, where the parameters are; in the second some are not finite."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
    for i, at, bad in SPOILT if step == 1 and len(params) == len(SHAPES) else ():
        params[i].grad[at] = bad  # type: ignore[index]
        params[6].grad[:, 1:3] = bad  # type: ignore[index]  # whole columns


def trained(
    cls: type[EmoOptimizer],
    name: str,
    steps: int = 2,
    dtype: torch.dtype = torch.float32,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    order: torch.memory_format = torch.preserve_format,
    **options: Any,
) -> tuple[Bucket, dict[str, Any]]:
    """The parameters and states after some steps by an implementation, and the metrics."""
    params = [nn.Parameter(p.detach().to(DEVICE, dtype)) for p in parameters(shapes)]
    for param in params:
        param.data = param.data.to(memory_format=order) if param.dim() == 4 else param.data
    optimizer = make(cls, params, name, lr=lr_for(cls, 1e-2), **options)
    for step, loss in enumerate(losses(steps)):
        give_gradients(params, step)
        optimizer.observe(loss)
        optimizer.step()
    return Bucket.of((param.detach(), param.grad, optimizer.state[param]) for param in params), optimizer.metrics()


def weights(param: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A parameter, with what rounding took from it."""
    rest = state.get(COMPENSATION)
    if rest is None:
        return param.float()
    return join(param, rest) if rest.dtype is torch.int8 else param.float() + rest


ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def assert_close(ours: list[Tensor], wanted: list[Tensor], rounding: float) -> None:
    """Sums may be rounded in another order: few elements may be the next number of their format, or code."""
    one, other = (torch.cat([tensor.float().flatten() for tensor in of]) for of in (ours, wanted))
    is_code = ours[0].dtype in (torch.int8, torch.uint8)
    torch.testing.assert_close(one, other, rtol=rounding, atol=1.0 if is_code else 2e-6, equal_nan=True)
    different = ~torch.isclose(one, other, rtol=2e-5, atol=1e-6, equal_nan=True)
    assert float(different.float().mean()) < (2e-3 if is_code else 1e-2)


def assert_agree(ours: Bucket, wanted: Bucket) -> None:
    compensated = COMPENSATION in ours.states[0]
    moved = [[weights(p, state) for p, _, state in of] for of in (ours, wanted)]
    assert_close(*moved, 2.0**-14 if compensated else ROUNDING[ours.params[0].dtype])
    assert [list(state) for state in ours.states] == [list(state) for state in wanted.states]
    for key in {key for state in ours.states for key in state} - {COMPENSATION}:
        for is_code in (False, True):
            kept = [
                [s[key] for s in of.states if key in s and (s[key].dtype in (torch.int8, torch.uint8)) is is_code]
                for of in (ours, wanted)
            ]
            if kept[0]:
                assert_close(*kept, ROUNDING.get(kept[0][0].dtype, 0.0))


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What has been logged since; nothing is known of any kernel."""
    monkeypatch.setattr(trust, "_found", {})
    caplog.set_level(logging.WARNING, logger=trust.logger.name)
    return lambda: [record.message for record in caplog.records]


SERVED: list[tuple[type[EmoOptimizer], dict[str, Any], int]] = [
    (EmoNavi, {}, 1),
    (EmoNavi, {"dtype": torch.float16, "nonfinite": "propagate"}, 1),
    (EmoNavi, BFLOAT16 | {"compensate": True}, 1),
    (EmoNavi, {"state": "8bit"}, 2),  # large parameters in codes, small ones in floats
    (EmoNavi, IN_8_BITS, 2),
    (EmoLynx, {"maximize": True}, 1),
    (EmoLynx, IN_8_BITS | {"compensate": True}, 2),
    (EmoFact, {}, 2),  # one for matrices, one for vectors
    (EmoFact, {"dtype": torch.float16, "compensate": True}, 2),
    (EmoFact, BFLOAT16 | {"compensate": "8bit"}, 2),
    (EmoAiry, BFLOAT16, 1),
    (EmoVoid, {}, 1),
    (EmoClan, {"steps": 4}, 3),
]


@pytest.mark.parametrize(("cls", "options", "kernels"), SERVED)
def test_an_optimizer_by_kernels_goes_where_its_loop_in_torch_goes_and_leaves_out_what_is_not_finite(
    cls: type[EmoOptimizer], options: dict[str, Any], kernels: int, said: Callable[[], list[str]]
) -> None:
    (ours, told), (wanted, expected) = (trained(cls, name, **options) for name in ("triton", "single"))
    assert_agree(ours, wanted)
    assert told == expected
    assert said() == []
    assert list(trust._found.values()) == [True] * kernels  # compared once, and trusted
    if "nonfinite" not in options:
        assert told["emo/nonfinite_gradients"] == len(SPOILT) + 2 * 300
        assert all(bool(tensor.isfinite().all()) for p, _, state in ours for tensor in (p, *state.values()))


def in_8_bits(elements: int) -> Bucket:
    """A parameter with all that belongs to it in 8 bits."""
    p, g, m, v = (torch.randn(elements, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i in range(4))
    param, rest = split(p, torch.zeros_like(p).long())
    (first, first_sizes), (second, second_sizes) = encode(m, torch.int8, None), encode(v.abs(), torch.uint8, None)
    state = {EXP_AVG: first, EXP_AVG + SIZES: first_sizes, EXP_AVG_SQ: second, EXP_AVG_SQ + SIZES: second_sizes}
    return Bucket.of([(param, g.bfloat16(), {**state, COMPENSATION: rest})])


def part_of(bucket: Bucket, begin: int, end: int, place: int = 0) -> Bucket:
    """Copies of a run of whole blocks of one parameter, whose first element has this place in its whole."""

    def part(key: str, value: Tensor) -> Tensor:
        share = BLOCK if key.endswith(SIZES) else 1
        return value[begin // share : end // share].clone()

    (param, gradient, state) = next(iter(bucket))
    own = StateOfPart({key: part(key, value) for key, value in state.items()}, place + begin)
    return Bucket([part("", param)], [part("", gradient)], [own])


def moved(bucket: Bucket, h: Hyperparameters) -> Bucket:
    launch.move("navi", KernelTensors.of(bucket, [EXP_AVG, EXP_AVG_SQ]), h)
    return bucket


def moved_by_torch(bucket: Bucket, h: Hyperparameters) -> Bucket:
    low.in_float32(Navi.implementations["single"], elementwise=True, on_cpu=True)(bucket, h)
    return bucket


def same_bits(one: Bucket, other: Bucket) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(p, q) and all(torch.equal(s[k], t[k]) for k in s) for (p, _, s), (q, _, t) in pairs)


@pytest.mark.parametrize(("place", "seed"), [(3, 1), (2**31 - 256, 2**31 + 5), (2**33 + 5, 2**32 + 7)])
def test_chance_has_the_same_bits_as_in_torch_at_any_place_and_step(place: int, seed: int) -> None:
    whole, h = in_8_bits(8 * BLOCK), replace(H, seed=seed)
    ours = moved(part_of(whole, 0, 8 * BLOCK, place), h)
    assert_agree(ours, moved_by_torch(part_of(whole, 0, 8 * BLOCK, place), h))
    assert not same_bits(ours, moved(part_of(whole, 0, 8 * BLOCK, place), replace(h, seed=seed + 12)))
    parts = [part_of(whole, begin * BLOCK, end * BLOCK, place) for begin, end in ((0, 2), (2, 8))]
    both = moved(Bucket.of(of_one for part in parts for of_one in part), h)
    assert torch.equal(torch.cat(both.params), ours.params[0])
    assert all(torch.equal(torch.cat(both.state(key)), value) for key, value in ours.states[0].items())


def test_special_numbers_are_kept_as_in_torch_and_not_hidden_where_they_are_not_left_out() -> None:
    before = in_8_bits(5 * BLOCK)
    param, gradient, state = next(iter(before))
    gradient[: 2 * BLOCK], gradient[4 * BLOCK] = 0.0, math.nan
    for key, factor in ((EXP_AVG, 0.0), (EXP_AVG_SQ, 1e-35)):
        state[key + SIZES][:2] *= factor
    param[1:3], state[COMPENSATION][1:3] = torch.tensor([math.inf, math.nan]), 0
    ours, wanted = (move(part_of(before, 0, 5 * BLOCK), H) for move in (moved, moved_by_torch))
    assert ours.params[0].isnan().nonzero().flatten().tolist() == [1, 2, 4 * BLOCK]  # ∞ − decay·∞ is no number
    for bucket in (ours, wanted):
        for key in (EXP_AVG, EXP_AVG_SQ):
            assert bucket.states[0][key + SIZES].isnan().tolist() == [False] * 4 + [True]
            bucket.states[0][key][4 * BLOCK :] = 0  # what codes stand for is no number, whatever they are
    assert_agree(ours, wanted)


def test_tensors_may_lie_in_any_order_and_what_does_not_fit_is_served_by_torch_in_the_same_step() -> None:
    for cls, options in ((EmoNavi, {}), (EmoLynx, IN_8_BITS), (EmoFact, {})):
        shapes = [(PIECE + 1,), (8, 16, 8, 8)]
        ends = [
            trained(cls, name, shapes=shapes, order=torch.channels_last, **options)[0] for name in ("triton", "single")
        ]
        assert_agree(*ends)


def test_all_tensors_in_8_bits_move_in_one_launch_and_small_ones_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(64, 70), (5,), (SMALLEST + 3,), (7,)]
    trained(EmoNavi, "triton", shapes=shapes, **IN_8_BITS)  # which is compared, and trusted
    launched, kernel = [], launch.kernel
    monkeypatch.setattr(launch, "kernel", lambda name: launched.append(name) or kernel(name))
    monkeypatch.setattr(low, "encode", None)  # nothing goes by way of float32 copies
    trained(EmoNavi, "triton", shapes=shapes, **IN_8_BITS)
    assert launched.count("elementwise.move") == 4


def test_a_table_is_kept_while_tensors_stay_where_they_are_and_a_step_counts_as_an_in_place_change() -> None:
    whole = torch.ones(10, device=DEVICE)
    param = nn.Parameter(whole[1:])  # which no thread can move 16 bytes of at once
    squared = (param * param).sum()
    bucket = Bucket([param], [torch.ones(9, device=DEVICE)], [{}])
    ends, misses = [], launch._sent.cache_info().misses
    for gradient in (bucket.grads[0], bucket.grads[0], torch.full((9,), -1.0, device=DEVICE)):
        bucket.grads[0] = gradient
        launch.move("sign", KernelTensors.of(bucket), replace(H, lr=0.25, decay=0.0))
        ends.append(float(param[8]))
    assert ends == [0.75, 0.5, 0.75]
    assert float(whole[0]) == 1.0
    assert launch._sent.cache_info().misses == misses + 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


def wrongly(move: Any, how: str, *args: Any) -> None:
    """A kernel that moves twice as far, leaves nothing out, or spoils the ends."""
    tensors, h = (next(arg for arg in args if isinstance(arg, kind)) for kind in (KernelTensors, Hyperparameters))
    spoilt = {"doubled": replace(h, lr=2 * h.lr), "nothing left out": replace(h, left_out=None)}.get(how, h)
    move(*[spoilt if arg is h else arg for arg in args])
    for param in tensors.params if how == "wrong ends" else ():
        end = param.view(-1)[-100:]
        end.add_(end.abs() + 1)


@pytest.mark.parametrize("how", ["doubled", "nothing left out", "wrong ends"])
def test_a_wrong_kernel_is_left_and_one_line_says_so(
    how: str, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    for name in ("move", "move_matrices"):
        right = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *args, right=right: wrongly(right, how, *args))
    ours, plain = (trained(EmoFact, name, shapes=[(300, 30), (7,)])[0] for name in ("triton", "single"))
    torch.testing.assert_close(ours.params, plain.params, rtol=1e-6, atol=1e-7)
    assert ["differs from plain PyTorch" in line for line in said()] == [True, True]  # for matrices and for vectors


def test_a_comparison_moves_nothing_and_counts_nothing() -> None:
    param, gradient = (torch.ones(50, 40, device=DEVICE) for _ in range(2))
    h = replace(H, lr=0.0, decay=0.0, left_out=LeftOut())
    Sign.implementations["triton"](Bucket([param], [gradient], [{}]), h)
    assert torch.equal(param, gradient)
    assert list(trust._found.values()) == [True]
    assert h.left_out is not None
    assert h.left_out.count == 0
