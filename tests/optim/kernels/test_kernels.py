"""What the kernels compute, against torch's operators, at any size and on any number of threads, and what they refuse.

`test_sanitizer.py` runs this under a sanitizer.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.optim.kernels import build, fact, launch, team
from emo_hf.optim.kernels.launch import elementwise, works_for
from emo_hf.optim.kernels.library import FLOATS
from emo_hf.optim.kernels.look import counts_not_finite
from emo_hf.optim.precision.eight_bits import SIZES
from emo_hf.optim.precision.low import in_eight_bits
from emo_hf.optim.rules.fact import Fact
from emo_hf.optim.rules.lynx import Lynx
from emo_hf.optim.rules.navi import Navi
from emo_hf.optim.rules.neco import Neco
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.rules.sign import Sign
from emo_hf.optim.rules.tion import Tion
from emo_hf.optim.rules.zeal import Zeal
from emo_hf.optim.state_keys import EXP_AVG, EXP_AVG_SQ
from emo_hf.optim.update import Bucket, Hyperparameters, State

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")

H = Hyperparameters(lr=3e-2, decay=2e-2, beta1=0.9, beta2=0.99, eps=1e-8, extra={"freshness": 0.5})
PIECE = 32768  # elements of a task
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Case:
    """A rule, and the σ by which it chooses what it does."""

    rule: type[Rule]
    scalar: float = 0.0

    def __str__(self) -> str:
        return f"{self.rule.__name__} at {self.scalar}" if self.scalar else self.rule.__name__

    def bucket(self, shapes: Shapes, seed: int = 0, draw: Callable[..., Tensor] = torch.randn) -> Bucket:
        """Tensors with entries as `draw` gives them; averages of squares, and sizes of rows and columns, above 0."""
        generator = torch.Generator().manual_seed(seed)
        bucket = Bucket()
        for shape in shapes:
            p, g = (draw(tuple(shape), generator=generator) for _ in range(2))
            first = self.rule.new_state(self.rule.__new__(self.rule), p)
            state = {key: draw(tuple(zero.shape), generator=generator) for key, zero in first.items()}
            bucket.add(p, g, {key: value if key == EXP_AVG else value.abs() for key, value in state.items()})
        return bucket

    def moved(self, bucket: Bucket, h: Hyperparameters = H, by: str = "native", dtype: Any = torch.float32) -> Bucket:
        """What an implementation makes of copies."""
        made = Bucket.of((p.to(dtype, copy=True), g.to(dtype), _copied(state, dtype)) for p, g, state in bucket)
        self.move(made, h, by)
        return made

    def move(self, bucket: Bucket, h: Hyperparameters = H, by: str = "native") -> None:
        self.rule.implementations[by](bucket, replace(h, scalar=self.scalar))


def _copied(state: State, dtype: torch.dtype) -> State:
    return {key: value.to(dtype, copy=True) for key, value in state.items()}


NAVI, FACT = Case(Navi), Case(Fact)
CASES = [NAVI, Case(Lynx), FACT, Case(Sign), Case(Tion)]
CASES += [Case(rule, scalar) for rule in (Neco, Zeal) for scalar in (0.3, 0.9)]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def pairs(one: Bucket, other: Bucket) -> Iterator[tuple[Tensor, Tensor]]:
    for (p, _, state), (q, _, other_state) in zip(one, other, strict=True):
        yield p, q
        yield from ((state[key], other_state[key]) for key in state)


def assert_as_torch_does(
    case: Case, ours: Bucket, before: Bucket, h: Hyperparameters = H, rtol: float = 1e-5, dtype: Any = torch.float64
) -> None:
    atol = 1e-5 if case.scalar == 0.3 else 1e-6  # where steps are as long as a gradient
    for one, wanted in pairs(ours, case.moved(before, h, "single", dtype)):
        torch.testing.assert_close(one.to(wanted.dtype), wanted, rtol=rtol, atol=atol, equal_nan=True)


def same_bits(one: Bucket, other: Bucket) -> bool:
    return all(torch.equal(a.view(-1).view(torch.int32), b.view(-1).view(torch.int32)) for a, b in pairs(one, other))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch set to so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SHAPES: list[tuple[int, ...]] = [(3, 4), (), (7,), (2, 3, 1, 5), (1,), (33, 65), (130,), (1, 7), (7, 1), (1, 1)]
LARGE_MATRICES = [(40, 50), (1, 1200), (1500, 1), (17, 70), (16, 3, 30), (31, 64), (300, 400), *[(200, 301)] * 20]
AROUND_A_PIECE = [
    [(PIECE - 1,)],
    [(PIECE + 1,)],
    [(7,), (PIECE - 7,), (), (2 * PIECE + 5,), (3, PIECE), (1,)],
    [(PIECE,), (PIECE,), (PIECE - 1,), (1,), (1,)],
]


@each_case
@pytest.mark.parametrize("own_threads", [False, True])
def test_a_kernel_moves_tensors_as_torch_does_wherever_they_end_and_threads_change_no_bit(
    case: Case, own_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_threads:
        monkeypatch.setattr(team, "pool", lambda: None)
    monkeypatch.setattr(fact, "LARGE", 1000)
    # Twenty times as many have addresses in memory of their own, which a sanitizer watches.
    for shapes in [SHAPES, SHAPES * 20, [*SHAPES, *LARGE_MATRICES], *AROUND_A_PIECE]:
        before = case.bucket(shapes)
        with threads(2):
            by_two = case.moved(before)
        assert_as_torch_does(case, by_two, before)
        with threads(1):
            assert same_bits(case.moved(before), by_two)


VALUES = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-40, 1e-20, -1e3, math.inf, -math.inf, math.nan])
ORDINARY = 10
"""So many of the values, the first, are finite."""

numbers = st.builds(
    Hyperparameters,
    lr=st.sampled_from([0.0, 1e-3, 1.0]),
    decay=st.sampled_from([0.0, 1e-2, 1.0]),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),  # with a half, momentum and gradient may cancel exactly
    beta2=st.sampled_from([0.0, 0.99, 0.999]),
    eps=st.sampled_from([1e-8, 1e-3]),
    extra=st.just({"freshness": 1.0}),
)


@each_case
@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(1, 20), max_size=3).map(tuple), min_size=1, max_size=6),
    st.integers(0, 2**32),
    numbers,
    st.sampled_from([ORDINARY, len(VALUES)]),
    st.sampled_from([1, 300, 10**6]),
)
def test_any_sizes_and_values_are_moved_as_torch_moves_them(
    case: Case, shapes: Shapes, seed: int, h: Hyperparameters, among: int, large: int
) -> None:
    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return VALUES[torch.randint(among, shape, generator=generator)]

    before = case.bucket(shapes, seed, draw)
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(fact, "LARGE", large)
        ours = case.moved(before, h)
    assert_as_torch_does(case, ours, before, h, 1e-4, torch.float32)


@each_case
def test_what_lies_beside_the_tensors_stays_as_it_is(case: Case) -> None:
    bucket, guards = case.bucket(SHAPES), []

    def guarded(tensor: Tensor) -> Tensor:
        guards.append(torch.full((tensor.numel() + 32,), 7.0))
        return guards[-1][16:-16].view(tensor.shape).copy_(tensor)

    case.move(Bucket.of((guarded(p), guarded(g), {k: guarded(v) for k, v in of.items()}) for p, g, of in bucket))
    assert all(bool((guard[:16] == 7).all() and (guard[-16:] == 7).all()) for guard in guards)


@pytest.mark.parametrize("default", [torch.bfloat16, "meta"])
def test_what_torch_makes_by_default_does_not_matter(default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact, "LARGE", 10_000)
    for case in (FACT, Case(Neco, 0.3)):
        before = case.bucket([*SHAPES, (300, 700), (20, 90), (100, 99)])
        wanted, ours = case.moved(before), case.moved(before, replace(H, lr=0.0, decay=0.0, beta1=1.0, beta2=1.0))
        try:
            torch.set_default_device(default) if default == "meta" else torch.set_default_dtype(default)
            case.move(ours)
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        assert same_bits(ours, wanted)


@pytest.mark.parametrize("shape", [(3,), (3, 2)], ids=["elements", "matrices"])
def test_a_step_counts_as_an_in_place_change(shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.ones(shape))
    squared = (param * param).sum()
    state = Fact.new_state(Fact.__new__(Fact), param.detach())
    with torch.no_grad():
        FACT.move(Bucket([param], [torch.ones(shape)], [state]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


def _move_in_child(bucket: Bucket, results: Any) -> None:
    NAVI.move(bucket)
    results.put(bucket.params[0][:1000].tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_moves_as_its_parent_does() -> None:
    bucket = NAVI.bucket([(300_000,)])  # several threads' work
    with threads(2):
        wanted = NAVI.moved(bucket)  # the parent has used threads
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        child = context.Process(target=_move_in_child, args=(bucket, results), daemon=True)
        child.start()
        found = results.get(timeout=60)
        child.join(timeout=60)
    assert torch.equal(torch.tensor(found), wanted.params[0][:1000])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_look_counts_every_element_that_is_not_finite_and_no_other(dtype: torch.dtype) -> None:
    clean = [torch.randn(size).to(dtype) for size in (1, 0, 5, 255, 4097, 32768, 100_001)]
    bad = [tensor.clone() for tensor in clean]
    for tensor in bad:
        tensor[: tensor.numel() // 3 : 7] = torch.finfo(dtype).max  # as large as a finite number is
        for value, at in ((math.nan, 0), (math.inf, tensor.numel() // 2), (-math.inf, tensor.numel() - 1)):
            tensor[at : at + 1] = value
    for count in (1, 2):
        with threads(count):
            assert counts_not_finite(clean) == [0] * len(clean)
            assert counts_not_finite(bad) == [int((~tensor.isfinite()).sum()) for tensor in bad]
    for left_to_torch in ([torch.zeros(3, dtype=torch.float64)], [torch.zeros(4, 4).t()[:2]], []):
        assert counts_not_finite(left_to_torch) is None


# What they are not handed: they trust addresses


def stepped(cls: type[EmoOptimizer], shape: tuple[int, ...], **options: Any) -> tuple[EmoOptimizer, nn.Parameter]:
    """An optimizer after its first step, and its second parameter."""
    params = [nn.Parameter(torch.ones(shape)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(shape)
    optimizer = cls(params, lr=0.1, **options)
    optimizer.observe(1.0)
    optimizer.step()
    return optimizer, params[1]


REMEDY = r".*make the optimizer anew after resizing, or delete its state with optimizer.state.pop\(parameter\)"


@pytest.mark.parametrize(
    ("cls", "before", "after", "said"),
    [
        (EmoNavi, (6, 5), (400, 400), r"first state tensor 1 of 3 has shape \[6, 5\], .* needs \[400, 400\]"),
        (EmoLynx, (6, 5), (5, 6), r"first state tensor 1 of 3 has shape \[6, 5\], .* needs \[5, 6\]"),
        (EmoFact, (500,), (7,), r"first state tensor 1 of 3 has shape \[500\], .* needs \[7\]"),
        (EmoFact, (6, 5), (4000, 5), "row state 1 of 3 has number of elements 6, but its parameter needs 4000"),
        (EmoFact, (6, 5), (6, 5000), "column state 1 of 3 has number of elements 5, but its parameter needs 5000"),
    ],
)
def test_a_parameter_that_was_resized_is_refused_with_the_remedy_and_nothing_moves(
    cls: type[EmoOptimizer], before: tuple[int, ...], after: tuple[int, ...], said: str
) -> None:
    optimizer, param = stepped(cls, before)
    kept = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    param.data = torch.ones(after)
    kept[1] = param.detach().clone()
    wrong_gradient = rf"gradient 1 of 3 has shape \[{before[0]}.*needs \[{after[0]}.*call optimizer.zero_grad\(\)"
    for message in (wrong_gradient, said + REMEDY):
        optimizer.observe(1.0)
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        assert all(map(torch.equal, optimizer.param_groups[0]["params"], kept))
        param.grad = torch.ones(after)


def test_sizes_of_blocks_belong_to_8_bits_and_to_as_many_elements() -> None:
    param = torch.ones(80, 80)
    state = in_eight_bits({EXP_AVG: torch.zeros(80, 80)}, frozenset({EXP_AVG}))
    wrong = {"has number of elements 2, but its parameter needs 25": {EXP_AVG + SIZES: torch.ones(2)}}
    wrong["sizes of blocks are for 8 bits alone"] = {EXP_AVG: param}
    for said, spoilt in wrong.items():
        with pytest.raises(RuntimeError, match=said):
            Case(Lynx).move(Bucket([param], [param], [state | spoilt]))
    assert bool((param == 1).all())


def test_freed_memory_is_refused() -> None:
    for case, shape in ((NAVI, (6,)), (FACT, (6, 5))):
        bucket = case.bucket([shape] * 3)
        for freed in (bucket.params[1], bucket.grads[1], *bucket.states[1].values()):
            size = freed.untyped_storage().nbytes()
            freed.untyped_storage().resize_(0)
            with pytest.raises(RuntimeError, match=r"parameter 1 of .* has no memory"):
                case.move(bucket)
            freed.untyped_storage().resize_(size)
            freed.fill_(1.0)


def to_100(bucket: Bucket, h: Hyperparameters) -> None:
    for p in bucket.params:
        p.fill_(100.0)


def strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


OTHERS: list[Callable[[Tensor], Tensor]] = [Tensor.double, strided, lambda tensor: tensor.as_subclass(nn.Buffer)]


def test_what_is_not_plain_and_alike_is_moved_by_torch_and_each_once() -> None:
    update = elementwise("navi", [EXP_AVG, EXP_AVG_SQ], otherwise=to_100)
    parts = [(torch.ones(3, 2), torch.zeros(3, 2), dict.fromkeys((EXP_AVG, EXP_AVG_SQ), torch.zeros(3, 2)))] * 3
    for change in OTHERS:
        for of in ("parameter", "gradient", EXP_AVG, EXP_AVG_SQ):
            bucket = Bucket.of((p.clone(), g.clone(), _copied(state, torch.float32)) for p, g, state in parts)
            if of == "parameter":
                bucket.params[1] = change(bucket.params[1])
            elif of == "gradient":
                bucket.grads[1] = change(bucket.grads[1])
            else:
                bucket.states[1][of] = change(bucket.states[1][of])
            update(bucket, H)
            assert [bool((p == 100).all()) for p in bucket.params] == [False, True, False]
            torch.testing.assert_close(bucket.params[0], torch.full((3, 2), 1 - H.decay))


def test_tensors_in_another_order_of_memory_are_moved_as_they_lie() -> None:
    turned = [lambda t: t.t().contiguous().t(), lambda t: t.to(memory_format=torch.channels_last)]
    before = NAVI.bucket([(5, 7), (2, 3, 4, 5)])
    ours = Bucket.of(
        (turn(p), turn(g), {key: turn(value) for key, value in state.items()})
        for turn, (p, g, state) in zip(turned, before, strict=True)
    )
    elementwise("navi", [EXP_AVG, EXP_AVG_SQ], otherwise=to_100)(ours, H)
    assert_as_torch_does(NAVI, ours, before)


def test_an_error_among_tensors_that_do_not_fit_is_not_hidden() -> None:
    update = elementwise("lynx", [EXP_AVG], otherwise=to_100)
    params, grads = [torch.ones(3).double(), torch.ones(3)], [torch.ones(3).double(), torch.ones(3)]
    states = [{EXP_AVG: torch.ones(3).double()}, {EXP_AVG: torch.ones(2)}]
    with pytest.raises(RuntimeError, match=r"has shape \[2\], but its parameter needs \[3\]") as caught:
        update(Bucket(params, grads, states), H)
    assert caught.value.__context__ is None


def test_kernels_are_chosen_for_floats_in_main_memory_and_without_a_library_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = [works_for(torch.ones(1, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
    assert chosen == [True, True, True, False]
    assert not works_for(torch.ones(1, device="meta"))
    monkeypatch.setattr(launch, "kernels", lambda: None)
    assert not works_for(torch.ones(1))
    for case in (NAVI, FACT):
        with pytest.raises(
            RuntimeError, match="native=True needs a C compiler, and none works here: leave native=None"
        ):
            case.move(case.bucket([(3, 4)]))
