"""What the kernels compute: their formulas in plain torch, at any size, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from emo_hf.optim.kernels import build, fact, team
from emo_hf.optim.update import Hyperparameters
from tests.optim.kernels.common import (
    H,
    Tensors,
    assert_same_bits,
    each_case,
    matrices,
    move,
    move_matrices,
    needs_compiler,
    tensors_for,
    threads,
)
from tests.optim.kernels.references import CASES, Case, Reference
from tests.optim.kernels.references import fact as fact_reference

pytestmark = needs_compiler

SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0,), (7,), (2, 3, 1, 5), (1,), (33, 65), (4, 0, 2), (130,), (1, 1)]
MATRICES: list[tuple[int, ...]] = [(3, 4), (1, 7), (7, 1), (1, 1), (33, 65), (2, 3, 5, 2), (17, 31, 3)]
LARGE_MATRICES: list[tuple[int, ...]] = [(40, 50), (1, 1200), (1500, 1), (17, 70), (15, 100), (16, 3, 30), (31, 64)]


def around_a_piece() -> list[list[tuple[int, ...]]]:
    """Lists of tensors whose ends lie just before, at and behind the ends of an elementwise task."""
    library = build.kernels()
    assert library is not None
    piece = library.piece
    return [
        [(piece - 1,)],
        [(piece,)],
        [(piece + 1,)],
        [(7,), (piece - 7,), (0,), (), (2 * piece + 5,), (3, piece), (1,)],
        [(piece,), (0,), (piece,), (piece - 1,), (1,), (1,)],
    ]


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact, "LARGE", 1000)


@pytest.fixture(params=["pool", "own threads"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "own threads":
        monkeypatch.setattr(team, "pool", lambda: None)
    elif team.pool() is None:
        pytest.skip("torch has no GNU OpenMP here")
    with threads(2):
        yield


def assert_as_the_formula_says(moved: Tensors, before: Tensors, reference: Reference, h: Hyperparameters = H) -> None:
    exact = before.copy(torch.float64)
    for i, (p, g, *state) in enumerate(zip(exact.params, exact.grads, *exact.states, strict=True)):
        scale = None if before.scales is None else float(before.scales[i])
        p, state = reference(p, g, state, h, scale)
        torch.testing.assert_close(moved.params[i].double(), p, rtol=1e-5, atol=1e-6)
        for ours, expected in zip(moved.states, state, strict=True):
            torch.testing.assert_close(ours[i].double(), expected, rtol=1e-5, atol=1e-6)


@each_case
@pytest.mark.parametrize("seed", range(3))
def test_an_elementwise_kernel_computes_its_formula(case: Case, seed: int) -> None:
    before = tensors_for(case, SHAPES, seed)
    moved = before.copy()
    move(case, moved)
    assert_as_the_formula_says(moved, before, case.reference)


@each_case
def test_tensors_may_end_anywhere_in_a_task(case: Case) -> None:
    for shapes in around_a_piece():
        before = tensors_for(case, shapes)
        moved = before.copy()
        move(case, moved)
        assert_as_the_formula_says(moved, before, case.reference)


@each_case
@pytest.mark.usefixtures("two_threads")
def test_two_threads_change_no_bit_of_an_elementwise_kernel(case: Case) -> None:
    for shapes in around_a_piece():
        one, two = (tensors_for(case, shapes) for _ in range(2))
        with threads(1):
            move(case, one)
        move(case, two)
        assert_same_bits(one, two)


@each_case
@pytest.mark.parametrize("beta1", [0.5, 0.9])  # with a half, they cancel exactly
def test_momentum_and_gradient_of_either_sign_and_none_meet(case: Case, beta1: float) -> None:
    h = replace(H, beta1=beta1)
    values = torch.tensor([-2.0, -0.0, 0.0, 2.0])
    p, g, *state = (t.reshape(-1).clone() for t in torch.meshgrid(*[values] * (2 + case.state_tensors), indexing="ij"))
    if case.reference.__name__ in ("navi", "fact_vector"):
        state[-1].abs_()
    before = Tensors([p], [g], [[s] for s in state], torch.ones(1) if case.scaled else None)
    moved = before.copy()
    move(case, moved, h)
    assert_as_the_formula_says(moved, before, case.reference, h)


@pytest.mark.parametrize("function", ["emo_sign", "emo_lynx", "emo_tion", "emo_neco", "emo_zeal"])
def test_the_sign_of_nan_is_zero_as_in_torch(function: str) -> None:
    case = next(case for case in CASES if case.function == function)
    tensors = Tensors([torch.ones(40)], [torch.full((40,), float("nan"))], [[torch.ones(40)]] * case.state_tensors)
    move(case, tensors, replace(H, decay=0.0))
    assert torch.equal(tensors.params[0], torch.ones(40))


@pytest.mark.parametrize("seed", range(3))
def test_matrices_move_by_the_sizes_of_rows_and_columns(seed: int) -> None:
    before = matrices(MATRICES, seed)
    moved = before.copy()
    move_matrices(moved)
    assert_as_the_formula_says(moved, before, fact_reference)


def test_an_empty_matrix_has_no_means_and_keeps_its_state() -> None:
    before = matrices([(0, 5), (3, 4), (4, 0), (2, 0, 3)])
    moved = before.copy()
    move_matrices(moved)
    for i in (0, 2, 3):
        for state, then in zip(moved.states, before.states, strict=True):
            assert torch.equal(state[i], then[i])


@pytest.mark.usefixtures("small_is_large")
def test_large_matrices_move_as_small_ones_do() -> None:
    before = matrices([*MATRICES[:5], *LARGE_MATRICES])
    moved = before.copy()
    move_matrices(moved)
    assert_as_the_formula_says(moved, before, fact_reference)


@pytest.mark.parametrize("large", [1000, fact.LARGE])
@pytest.mark.usefixtures("two_threads")
def test_two_threads_change_no_bit_of_matrices(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact, "LARGE", large)
    shapes = [*LARGE_MATRICES, (300, 400), (250, 301), (20, 30), (900, 1), (1, 999), *[(200, 301)] * 20]
    one, two = (matrices(shapes) for _ in range(2))
    with threads(1):
        move_matrices(one)
    move_matrices(two)
    assert_same_bits(one, two)


@each_case
def test_many_tensors_are_one_call(case: Case) -> None:
    # So many that their addresses lie in memory of their own, which a sanitizer watches.
    before = tensors_for(case, SHAPES * 20)
    moved = before.copy()
    move(case, moved)
    assert_as_the_formula_says(moved, before, case.reference)


def test_many_matrices_are_one_call() -> None:
    before = matrices(MATRICES * 20)
    moved = before.copy()
    move_matrices(moved)
    assert_as_the_formula_says(moved, before, fact_reference)


@each_case
def test_nothing_to_move_is_nothing_done(case: Case) -> None:
    empty = Tensors([], [], [[] for _ in range(case.state_tensors)], torch.ones(0) if case.scaled else None)
    move(case, empty)
    move_matrices(Tensors([], [], [[], []]))


@each_case
def test_what_lies_beside_the_tensors_stays_as_it_is(case: Case) -> None:
    beside = 16
    tensors = tensors_for(case, SHAPES)
    guarded = [torch.full((tensor.numel() + 2 * beside,), 7.0) for tensor in tensors.all()]
    views = [guard[beside : beside + t.numel()].view(t.shape) for guard, t in zip(guarded, tensors.all(), strict=True)]
    for view, tensor in zip(views, tensors.all(), strict=True):
        view.copy_(tensor)
    n = len(SHAPES)
    lists = [views[i : i + n] for i in range(0, len(views), n)]
    move(case, Tensors(lists[0], lists[1], lists[2:], tensors.scales))
    for guard in guarded:
        assert (guard[:beside] == 7).all()
        assert (guard[-beside:] == 7).all()
