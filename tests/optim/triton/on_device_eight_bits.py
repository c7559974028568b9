"""What the Triton kernels keep in 8 bits, against the formulas in torch. `test_kernels.py` runs this."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from emo_hf import EmoClan, EmoFact, EmoLynx, EmoNavi, EmoNeco, EmoOptimizer
from emo_hf.optim.kernels.checks import UnfitError
from emo_hf.optim.kernels.gpu import elementwise
from emo_hf.optim.kernels.launch import Kept
from emo_hf.optim.precision import low
from emo_hf.optim.precision.eight_bits import BLOCK, SIZES, decode, draw, encode, join, split
from emo_hf.optim.rules.fact import MATRICES as MOVE_MATRICES
from emo_hf.optim.state_keys import COLUMN_RMS, COMPENSATION, ROW_RMS
from emo_hf.optim.update import Bucket, Hyperparameters
from tests.emo_cases import make, parameters
from tests.optim.kernels.common import NAVI, H, Tensors, matrices, tensors_for
from tests.optim.kernels.references import Case
from tests.optim.triton.common import (
    CODES,
    DEVICE,
    GPU_CASES,
    MATRICES,
    PIECE,
    assert_codes_agree,
    counting,
    move,
    move_matrices,
    on_device,
    run,
)

SHAPES: list[tuple[int, ...]] = [(), (0,), (BLOCK - 1,), (BLOCK,), (33, 65), (PIECE + 1,), (2 * PIECE + BLOCK,)]
SEEDED = replace(H, lr=3e-4, seed=12345)
each_case = pytest.mark.parametrize("case", GPU_CASES, ids=str)


@dataclass
class Low:
    """Tensors with state or compensation in 8 bits, and what belongs to them."""

    tensors: Tensors
    kept: Kept

    def copy(self) -> Low:
        of = self.tensors
        lists = [of.params, of.grads, *of.states, self.kept.compensation or [], *(s or [] for s in self.kept.sizes)]
        p, g, *rest = [[tensor.clone() for tensor in tensors] for tensors in lists]
        count = len(of.states)
        compensation = rest[count] if self.kept.compensation else None
        return Low(Tensors(p, g, rest[:count]), Kept(compensation, [s or None for s in rest[count + 1 :]]))

    def all(self) -> list[list[Tensor]]:
        of = self.tensors
        return [of.params, *of.states, self.kept.compensation or [], *(s or [] for s in self.kept.sizes)]

    def only(self, i: int) -> Low:
        """The tensors of one parameter."""
        of = self.tensors
        sizes = [None if s is None else [s[i]] for s in self.kept.sizes]
        compensation = None if self.kept.compensation is None else [self.kept.compensation[i]]
        return Low(Tensors([of.params[i]], [of.grads[i]], [[s[i]] for s in of.states]), Kept(compensation, sizes))


def lowered(case: Case, shapes: Sequence[tuple[int, ...]], *, state: bool, compensate: bool) -> Low:
    """Tensors of a rule in bfloat16 with compensation in 8 bits, else in float32; state in 8 bits, else in float32."""
    made = on_device(tensors_for(case, shapes))
    if compensate:
        made.grads = [grad.bfloat16() for grad in made.grads]
    halves = [split(param, torch.zeros_like(param).long()) for param in made.params]
    sizes: list[list[Tensor] | None] = []
    for number, tensors in enumerate(made.states if state else []):
        dtype = torch.uint8 if number == 1 or case.reference.__name__ == "fact_vector" else torch.int8
        pairs = [encode(tensor, dtype, None) for tensor in tensors]
        made.states[number] = [codes for codes, _ in pairs]
        sizes.append([of_blocks for _, of_blocks in pairs])
    if compensate:
        made.params = [param for param, _ in halves]
    return Low(made, Kept([rest for _, rest in halves] if compensate else None, sizes))


def by_torch(case: Case, low: Low, h: Hyperparameters) -> Low:
    """What the formulas in torch make of the same tensors; elements without a finite gradient are left out."""
    of, kept, made = low.tensors, low.kept, low.copy()
    for i, (p, g) in enumerate(zip(of.params, (grad.float() for grad in of.grads), strict=True)):
        finite, chance = g.isfinite(), draw(g, 0, h.seed)
        old = [
            s[i] if number >= len(kept.sizes) else decode(s[i], (kept.sizes[number] or [])[i])
            for number, s in enumerate(of.states)
        ]
        old_p = p if kept.compensation is None else join(p, kept.compensation[i])
        scale = float(g[finite].norm()) + h.eps if case.scaled else None
        new_p, new = case.reference(old_p, torch.where(finite, g, 0.0), old, h, scale)
        new_p = torch.where(finite, new_p, old_p)
        for number, (state, before) in enumerate(zip(new, old, strict=True)):
            x = torch.where(finite, state, before)
            if number < len(kept.sizes):
                x, (made.kept.sizes[number] or [])[i] = encode(x, of.states[number][i].dtype, chance)
            made.tensors.states[number][i] = x
        if made.kept.compensation is None:
            made.tensors.params[i] = new_p
        else:
            made.tensors.params[i], made.kept.compensation[i] = split(new_p, chance)
    return made


def assert_24_bits_agree(ours: Iterable[tuple[Tensor, Tensor]], wanted: Iterable[tuple[Tensor, Tensor]]) -> None:
    """The same 24 bits nearly everywhere, and the next elsewhere; more of them may differ where numbers cancel."""
    a, b = (torch.cat([join(*pair).flatten() for pair in of]) for of in (ours, wanted))
    torch.testing.assert_close(a, b, rtol=2**-15, atol=2e-6)
    assert float((a != b).float().mean()) < 1e-2


def pairs(low: Low) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(low.tensors.params, low.kept.compensation or [], strict=True)


def assert_agree(ours: Low, wanted: Low) -> None:
    if ours.kept.compensation is None:
        torch.testing.assert_close(ours.tensors.params, wanted.tensors.params, rtol=1e-5, atol=1e-6)
    else:
        assert_24_bits_agree(pairs(ours), pairs(wanted))
    for a, b in zip(ours.tensors.states, wanted.tensors.states, strict=True):
        if a[0].dtype in CODES:
            assert_codes_agree(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours.kept.sizes, wanted.kept.sizes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


each_way = pytest.mark.parametrize(
    "way",
    [{"state": state, "compensate": compensate} for state, compensate in ((True, False), (False, True), (True, True))],
    ids=["state", "compensation", "both"],
)


@each_case
@each_way
def test_a_step_in_8_bits_is_that_of_torch_for_many_tensors_at_once(case: Case, way: dict[str, bool]) -> None:
    before = lowered(case, SHAPES, **way)
    before.tensors.grads[4][3, 5] = math.nan
    before.tensors.grads[5][PIECE], before.tensors.grads[5][7] = math.inf, -math.inf
    moved, h = before.copy(), counting(SEEDED)
    move(case, moved.tensors, h, moved.kept)
    assert_agree(moved, by_torch(case, before, h))
    assert h.left_out is not None
    assert h.left_out.count == 3
    for i, place in ((4, (3, 5)), (5, (PIECE,)), (5, (7,))):
        kept = [(moved.tensors.params, before.tensors.params)]
        kept += [(moved.kept.compensation or [], before.kept.compensation or [])] if way["compensate"] else []
        assert all(now[i][place] == then[i][place] for now, then in kept)


@each_way
def test_a_tensor_among_others_takes_the_step_that_it_takes_alone(way: dict[str, bool]) -> None:
    together = lowered(NAVI, SHAPES, **way)
    alone = [together.only(i).copy() for i in range(len(SHAPES))]
    move(NAVI, together.tensors, SEEDED, together.kept)
    for i, one in enumerate(alone):
        move(NAVI, one.tensors, SEEDED, one.kept)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together.all(), one.all(), strict=True) if a)


def test_parts_of_a_tensor_round_as_they_do_in_the_whole() -> None:
    whole = lowered(NAVI, [(6, BLOCK)], state=True, compensate=True)
    of, kept, cuts = whole.tensors, whole.copy().kept, [2 * BLOCK, 4 * BLOCK]

    def parts(tensors: list[Tensor], share: int = 1) -> list[Tensor]:
        return [part.clone() for part in tensors[0].view(-1).split([cut // share for cut in cuts])]

    own = Tensors(parts(of.params), parts(of.grads), [parts(state) for state in of.states])
    sizes = [parts(s or [], BLOCK) for s in kept.sizes]
    moved = Low(own, Kept(parts(kept.compensation or []), sizes, places=[0, cuts[0]]))
    for each in (whole, moved):
        move(NAVI, each.tensors, SEEDED, each.kept)
    for ours, expected in zip(moved.all(), whole.all(), strict=True):
        assert torch.equal(torch.cat(ours), expected[0].view(-1))


def test_another_step_rounds_otherwise() -> None:
    one = lowered(NAVI, [(2 * BLOCK,)], state=True, compensate=True)
    other = one.copy()
    move(NAVI, one.tensors, SEEDED, one.kept)
    move(NAVI, other.tensors, replace(SEEDED, seed=7), other.kept)
    assert not torch.equal(one.tensors.states[0][0], other.tensors.states[0][0])
    assert not torch.equal((one.kept.compensation or [])[0], (other.kept.compensation or [])[0])


def test_what_is_not_finite_is_not_hidden_where_it_is_not_left_out() -> None:
    low = lowered(NAVI, [(2 * BLOCK,)], state=True, compensate=True)
    low.tensors.grads[0][3] = math.nan
    move(NAVI, low.tensors, SEEDED, low.kept)
    assert torch.equal(low.tensors.params[0].isnan().nonzero(), torch.tensor([[3]], device=DEVICE))
    assert (low.kept.sizes[0] or [])[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("how", ["no sizes", "sizes of floats", "few sizes", "float16", "uint8", "not contiguous"])
def test_what_does_not_fit_is_refused_before_anything_moves(how: str) -> None:
    low = lowered(NAVI, [(2 * BLOCK,), (4, 3, 8, 8)], state=how != "sizes of floats", compensate=True)
    tensors, sizes, compensation = low.tensors, [*low.kept.sizes], low.kept.compensation or []
    said = {
        "no sizes": "first state tensors are torch.int8, without sizes of blocks: torch.int8 and",
        "sizes of floats": "first state tensors are torch.float32, with sizes of blocks: torch.int8 and",
        "few sizes": "sizes of second state tensor 1 of 2 has number of elements 1, but its parameter needs 3",
        "float16": "the compensation is torch.int8 and its parameter torch.float16",
        "uint8": "the compensation is torch.uint8 and its parameter torch.bfloat16",
        "not contiguous": "a parameter with 8 bits is not contiguous",
    }[how]
    if how == "no sizes":
        sizes = []
    elif how == "sizes of floats":
        sizes = [[torch.ones(2, device=DEVICE), torch.ones(3, device=DEVICE)]]
    elif how == "few sizes":
        sizes[1] = [(sizes[1] or [])[0], torch.ones(1, device=DEVICE)]
    elif how == "float16":
        tensors.params = [param.half() for param in tensors.params]
    elif how == "uint8":
        compensation = [rest.byte() for rest in compensation]
    else:
        for tensors_of_kind in (tensors.params, tensors.grads, *tensors.states, compensation):
            tensors_of_kind[1] = tensors_of_kind[1].to(memory_format=torch.channels_last)
    before = [param.clone() for param in tensors.params]
    with pytest.raises(RuntimeError, match=said) as caught:
        move(NAVI, tensors, SEEDED, Kept(compensation, sizes))
    assert (type(caught.value) is UnfitError) is (how in ("float16", "uint8", "not contiguous"))
    assert all(map(torch.equal, tensors.params, before))


def test_matrices_with_24_bits_are_moved_as_by_torch() -> None:
    h = counting(SEEDED)
    made = on_device(matrices([*MATRICES, (40, 260)]))
    made.grads = [grad.bfloat16() for grad in made.grads]
    made.grads[-1][3, 7], made.grads[-1][39, 259] = math.nan, math.inf
    halves = [split(param, torch.zeros_like(param).long()) for param in made.params]
    params, corrections = [p for p, _ in halves], [c for _, c in halves]
    wide = [join(*pair) for pair in halves]
    sizes = [[size.clone() for size in of_kind] for of_kind in made.states]
    for p, g, r, k in zip(wide, made.grads, *sizes, strict=True):
        MOVE_MATRICES["finite"](Bucket([p], [g.float()], [{ROW_RMS: r, COLUMN_RMS: k}]), SEEDED)
    wanted = [split(p, draw(g, 0, h.seed)) for p, g in zip(wide, made.grads, strict=True)]
    spoilt = params[-1][3, 7].item(), corrections[-1][3, 7].item()
    move_matrices(Tensors(params, made.grads, made.states), h, Kept(corrections))
    assert_24_bits_agree(zip(params, corrections, strict=True), wanted)
    torch.testing.assert_close(made.states, sizes, rtol=1e-5, atol=1e-6)
    assert (params[-1][3, 7].item(), corrections[-1][3, 7].item()) == spoilt
    assert h.left_out is not None
    assert h.left_out.count == 2


def low_params(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().to(DEVICE, torch.bfloat16)) for param in parameters(shapes)]


BOTH = {"state": "8bit", "compensate": "8bit"}
OPTIMIZERS: list[tuple[type[EmoOptimizer], dict[str, object]]] = [
    (EmoNavi, BOTH), (EmoLynx, {"state": "8bit", "compensate": True}), (EmoNeco, BOTH),
    (EmoFact, {"compensate": "8bit"}), (EmoClan, {"compensate": "8bit"}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
def test_optimizers_keep_the_same_numbers_as_in_plain_torch(
    cls: type[EmoOptimizer], options: dict[str, object]
) -> None:
    kept = []
    for name in ("triton", "single"):
        params = low_params((64, 70), (5,), (4099,))
        optimizer = make(cls, params, name, lr=1e-3, **options)
        run(optimizer, 2)
        kept.append((params, [optimizer.state[param] for param in params]))
    for (p, ours), (q, by_loop) in zip(*(zip(*of, strict=True) for of in kept), strict=True):
        assert ours.keys() == by_loop.keys()
        for key in ours.keys() - {COMPENSATION}:
            if ours[key].dtype in CODES:
                assert_codes_agree([ours[key]], [by_loop[key]])
            else:
                torch.testing.assert_close(ours[key], by_loop[key], rtol=1e-5, atol=1e-7)
        if ours[COMPENSATION].dtype is torch.int8:
            a, b = join(p, ours[COMPENSATION]), join(q, by_loop[COMPENSATION])
        else:
            a, b = (x.detach().float() + of[COMPENSATION] for x, of in ((p, ours), (q, by_loop)))
        torch.testing.assert_close(a, b, rtol=2**-14, atol=1e-7)


def test_all_tensors_in_8_bits_move_in_one_launch_and_small_ones_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, kernel = [], elementwise.kernel
    monkeypatch.setattr(elementwise, "kernel", lambda name: launched.append(name) or kernel(name))
    monkeypatch.setattr(low, "encode", None)  # nothing goes by way of float32 copies
    params = low_params((64, 64), (5,), (70, 60), (3, 4), (4099,))
    optimizer = make(EmoNavi, params, "triton", lr=1e-3, **BOTH)
    run(optimizer, 2)
    assert launched == ["elementwise.move"] * 4
    assert [key for key in optimizer.state[params[1]] if key.endswith(SIZES)] == []


def test_a_tensor_in_another_order_is_served_by_torch_in_the_same_step() -> None:
    kept = []
    for name in ("triton", "single"):
        params = low_params((64, 64), (8, 16, 8, 8))
        params[1].data = params[1].data.to(memory_format=torch.channels_last)
        optimizer = make(EmoLynx, params, name, lr=1e-3, **BOTH)
        run(optimizer, 2)
        kept.append([optimizer.state[param]["exp_avg"] for param in params])
    assert_codes_agree(*kept)
