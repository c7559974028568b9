"""How the kernels are called, and what they leave to torch."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest
import torch
from torch import nn

from emo_hf.optim.kernels import build, fact, launch
from emo_hf.optim.kernels.launch import elementwise, run_elementwise, where_it_fits, works_for
from emo_hf.optim.update import Bucket, Hyperparameters, State
from tests.optim.kernels.common import (
    NAVI,
    NECO_SCALED,
    H,
    Tensors,
    assert_same_bits,
    matrices,
    move,
    move_matrices,
    needs_compiler,
    refused,
    run,
    strided,
    tensors_for,
    threads,
)

pytestmark = needs_compiler

SHAPES = [(4, 4), (5,), (3, 2)]
MATRICES = [(4, 4), (6, 5), (3, 2)]


def test_whatever_does_not_fit_is_moved_by_the_other_implementation() -> None:
    def other(bucket: Bucket, h: Hyperparameters) -> None:
        for p in bucket.params:
            p.fill_(100.0)

    params = [torch.ones(3), torch.ones(3, dtype=torch.float64), torch.ones(3, 2).t(), torch.ones(2)]
    grads = [torch.ones_like(p) for p in params]
    states: list[State] = [{"m": torch.zeros_like(p), "v": torch.zeros_like(p)} for p in params]
    states[3]["v"] = states[3]["v"].double()
    elementwise("emo_navi", ["m", "v"], otherwise=other)(Bucket(params, grads, states), H)
    assert [bool((p == 100).all()) for p in params] == [False, True, True, True]
    assert bool((params[0] < 1).all())


def test_an_error_among_tensors_that_do_not_fit_is_not_hidden() -> None:
    update = elementwise("emo_lynx", ["m"], otherwise=lambda *_: None)
    params, grads = [torch.ones(3), torch.ones(3).double()], [torch.ones(3), torch.ones(3).double()]
    states = [{"m": torch.ones(2)}, {"m": torch.ones(3).double()}]
    with pytest.raises(RuntimeError, match=r"has shape \[2\], but its parameter needs \[3\]") as caught:
        update(Bucket(params, grads, states), H)
    assert caught.value.__context__ is None


def test_where_it_fits_moves_each_parameter_once() -> None:
    def by_kernel(bucket: Bucket, h: Hyperparameters) -> None:
        run_elementwise("emo_sign", bucket.params, bucket.grads, [], h)

    def by_ten(bucket: Bucket, h: Hyperparameters) -> None:
        for p in bucket.params:
            p.sub_(10)

    params = [torch.ones(2), strided(torch.ones(2)), torch.ones(2)]
    update = where_it_fits(by_kernel, otherwise=by_ten)
    update(Bucket(params, [torch.zeros(2)] * 3, [{}] * 3), Hyperparameters(1.0, 0.5, 0.0, 0.0, 0.0))
    assert [p.tolist() for p in params] == [[0.5, 0.5], [-9, -9], [0.5, 0.5]]


def test_scales_may_be_numbers_or_any_tensor_of_them() -> None:
    numbers = [0.5, 2.0, 1.0]
    moved = []
    for scales in (numbers, torch.tensor(numbers), torch.tensor(numbers).double(), strided(torch.tensor(numbers))):
        tensors = tensors_for(NECO_SCALED, SHAPES)
        tensors.scales = scales  # type: ignore[assignment]
        move(NECO_SCALED, tensors)
        moved.append(tensors)
    for tensors in moved[1:]:
        assert_same_bits(tensors, moved[0])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, "meta"])
def test_what_torch_makes_by_default_does_not_matter(default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact, "LARGE", 10_000)
    shapes = [*MATRICES, (300, 700), (20, 90), (100, 99)]
    plain = matrices(shapes)
    scaled = tensors_for(NECO_SCALED, shapes)
    scaled.scales = [0.5] * len(shapes)  # type: ignore[assignment]
    unusual = plain.copy(), scaled.copy()
    move_matrices(plain)
    move(NECO_SCALED, scaled)
    set_default = torch.set_default_device if default == "meta" else torch.set_default_dtype
    set_default(default)
    try:
        move_matrices(unusual[0])
        move(NECO_SCALED, unusual[1])
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for ours, expected in zip(unusual, (plain, scaled), strict=True):
        assert_same_bits(ours, expected)


def test_a_step_counts_as_an_in_place_change() -> None:
    for shape in ((3,), (3, 2)):
        param = nn.Parameter(torch.ones(shape))
        squared = (param * param).sum()
        tensors = Tensors([param], [torch.ones(shape)], [[torch.ones(3, 1)], [torch.ones(1, 2)]])
        move_matrices(tensors) if len(shape) > 1 else run_elementwise("emo_sign", [param], tensors.grads, [], H)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squared.backward()


def _move_in_child(tensors: Tensors, results: Any) -> None:
    move(NAVI, tensors)
    results.put(tensors.params[0][:1000].tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_moves_as_its_parent_does() -> None:
    tensors = tensors_for(NAVI, [(300_000,)])  # several threads' work
    with threads(2):
        move(NAVI, tensors.copy())  # the parent has used threads
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        child = context.Process(target=_move_in_child, args=(tensors.copy(), results), daemon=True)
        child.start()
        moved = results.get(timeout=60)
        child.join(timeout=60)
        move(NAVI, tensors)
    assert torch.equal(torch.tensor(moved), tensors.params[0][:1000])


def test_kernels_are_chosen_for_floating_point_parameters_in_main_memory() -> None:
    chosen = [works_for(torch.ones(1, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
    assert chosen == [True, True, True, False]
    assert not works_for(torch.ones(1, device="meta"))


def test_without_a_library_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "kernels", lambda: None)
    assert not works_for(torch.ones(1))
    for tensors, call in ((tensors_for(NAVI, SHAPES), run(NAVI)), (matrices(MATRICES), move_matrices)):
        refused(call, tensors, "native=True needs a C compiler, and none works here: leave native=None")


def test_constants_come_from_the_library() -> None:
    library = build.kernels()
    assert library is not None
    assert (library.piece, library.blocks, library.most_threads) == (32768, 16, 256)
