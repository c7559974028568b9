"""The compiled kernels, their fallback, and the memory of a step. Nothing in here is timed."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from emo_hf import EmoAiry, EmoFact, EmoLynx, EmoNavi, EmoOptimizer, EmoVoid
from emo_hf.optim import pieces
from emo_hf.optim.kernels import build, cache, fact, team
from emo_hf.optim.rules.tion import Tion
from emo_hf.optim.rules.void import Void
from emo_hf.optim.update import Bucket, Hyperparameters, State
from tests.emo_cases import (
    OPTIMIZERS,
    each_implementation,
    each_optimizer,
    give_gradients,
    losses,
    make,
    parameters,
    rule_of,
    run,
)
from tests.optim import memory_of_a_step
from tests.ranks import begin

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")
LONG_STEPS = 60


@pytest.fixture
def fresh_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a process that has not asked for kernels yet."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    build.kernels.cache_clear()
    yield tmp_path / "cache"
    build.kernels.cache_clear()


def trained(
    cls: type[EmoOptimizer], shapes: list[tuple[int, ...]], implementation: str, steps: int
) -> list[torch.Tensor]:
    params = parameters(shapes)
    run(make(cls, params, implementation, lr=1e-2), range(steps))
    return [param.detach() for param in params]


@needs_compiler
@each_optimizer
def test_kernels_agree_with_the_loop_over_many_steps(cls: type[EmoOptimizer]) -> None:
    shapes = [(3, 4), (5,), (), (2, 3, 5, 2), (1, 7), (7, 1), (33, 65), (130,), (1, 1)]
    for ours, slow in zip(
        trained(cls, shapes, "native", LONG_STEPS), trained(cls, shapes, "single", LONG_STEPS), strict=True
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-5, atol=5e-6)


@needs_compiler
@pytest.mark.parametrize("pooled", [True, False])
@each_optimizer
def test_sharing_among_threads_changes_no_bit(
    cls: type[EmoOptimizer], pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pooled:
        monkeypatch.setattr(team, "pool", lambda: None)
    elif team.pool() is None:
        pytest.skip("torch has no GNU OpenMP here")
    monkeypatch.setattr(build.kernels(), "piece", 100)
    monkeypatch.setattr(fact, "LARGE", 1000)
    shapes = [(40, 50), (7,), (250, 400), (37, 11), (300,), (33_000,), (17, 4, 30), (25, 40)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(trained(cls, shapes, "native", 5))
    finally:
        torch.set_num_threads(before)
    for one, four in zip(*results, strict=True):
        if rule_of(cls) in (Tion, Void):  # torch sums norms in another order on more threads
            torch.testing.assert_close(one, four, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(one, four)
    for ours, slow in zip(results[0], trained(cls, shapes, "single", 5), strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-5, atol=5e-6)


@needs_compiler
def test_one_compilation_serves_all_steps_rates_coefficients_and_processes(
    fresh_kernels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=build.logger.name)
    for cls in OPTIMIZERS:
        params = parameters([(3, 4), (5,)])
        optimizer = cls(params)
        for t, loss in enumerate(losses(12)):
            optimizer.param_groups[0]["lr"] = 1e-3 / (t + 1)
            give_gradients(params, t)
            optimizer.observe(loss)
            optimizer.step()
        build.kernels.cache_clear()  # as a new process would begin
    compilations = [record for record in caplog.records if record.message.startswith("compiled ")]
    assert len(compilations) == 1
    assert len(list(fresh_kernels.glob("*.so"))) == 1


@pytest.mark.parametrize("compiler", [None, ("false",)])
@each_optimizer
def test_without_a_working_compiler_one_line_of_log_and_plain_torch(
    cls: type[EmoOptimizer],
    compiler: tuple[str, ...] | None,
    fresh_kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: compiler)
    params = parameters([(3, 4), (5,)])
    run(cls(params, lr=1e-2), range(3))
    assert [record.name for record in caplog.records] == [build.logger.name]
    for ours, slow in zip(params, trained(cls, [(3, 4), (5,)], "single", 3), strict=True):
        torch.testing.assert_close(ours.detach(), slow, rtol=1e-5, atol=5e-6)
    with pytest.raises(RuntimeError, match="native=True needs a C compiler"):
        run(cls(params, native=True), range(1))


@each_optimizer
def test_asking_for_the_kernels_on_another_device_is_an_error(cls: type[EmoOptimizer]) -> None:
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones_like(param)
    optimizer = cls([param], native=True)
    optimizer.observe(1.0)
    with pytest.raises(RuntimeError, match="parameters are on meta: leave native=None"):
        optimizer.step()


@needs_compiler
def test_a_cache_folder_that_cannot_be_written_does_not_matter(
    fresh_kernels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert build.kernels() is not None


def _step_in_child(params: list[nn.Parameter], results: Any) -> None:
    run(EmoLynx(params, lr=1e-2), range(3))
    results.put([param.detach().tolist() for param in params])


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_steps_as_its_parent_does() -> None:
    shape = (300, 400)  # several threads' work
    trained(EmoLynx, [shape], "native", 1)  # the parent has used threads
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_step_in_child, args=(parameters([shape]), results))
    child.start()
    moved = results.get(timeout=60)
    child.join(timeout=60)
    assert torch.equal(torch.tensor(moved[0]), trained(EmoLynx, [shape], "native", 3)[0])


@needs_compiler
def test_a_step_by_the_kernels_counts_as_an_in_place_change() -> None:
    param = nn.Parameter(torch.ones(3))
    squared = (param * param).sum()
    param.grad = torch.ones(3)
    optimizer = EmoNavi([param], native=True)
    optimizer.observe(1.0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


@needs_compiler
@pytest.mark.skipif(not os.access(memory_of_a_step.PEAK, os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize(
    ("count", "rows", "options", "mebibytes"),
    [(48, 1024, "native", 4), (48, 1024, "native maximize", 72), (1, 48 * 1024, "foreach", 72)],
)
@pytest.mark.parametrize("cls", {rule_of(cls): cls for cls in reversed(OPTIMIZERS)}.values())
def test_the_extra_memory_of_a_step_does_not_grow_with_the_model(
    cls: type[EmoOptimizer], count: int, rows: int, options: str, mebibytes: int, tmp_path: Path
) -> None:
    if not {*options.split()} - {"maximize"} <= rule_of(cls).implementations.keys():
        pytest.skip("this rule has no such implementation")
    given = {name: True for name in options.split()}
    figure, output = tmp_path / "kibibytes", tmp_path / "output"
    process = begin(memory_of_a_step.measure, cls.__name__, count, rows, given, str(figure), output=output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    # 192 MiB of parameters, of which copies are held for at most 64 MiB at a time.
    assert int(figure.read_text()) < mebibytes * 1024


@pytest.mark.parametrize("implementation", ["single", "foreach"])
@each_optimizer
def test_large_tensors_are_worked_on_in_parts_as_small_ones_are_whole(
    cls: type[EmoOptimizer], implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation not in rule_of(cls).implementations:
        pytest.skip("this rule has no such implementation")
    shapes = [(30, 20), (7, 5, 4), (400,), (300, 3), (2, 900), (6,), ()]
    whole = trained(cls, shapes, implementation, 5)
    monkeypatch.setattr(pieces, "PIECE", 50)
    in_parts = trained(cls, shapes, implementation, 5)
    for ours, expected in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("cls", "per_element"), [(EmoNavi, 8), (EmoLynx, 4), (EmoFact, 0), (EmoAiry, 0), (EmoVoid, 0)]
)
def test_state_has_the_bytes_that_are_promised(cls: type[EmoOptimizer], per_element: int) -> None:
    params = parameters([(20, 30)])
    optimizer = cls(params)
    run(optimizer, range(1))
    size = sum(value.numel() * value.element_size() for value in optimizer.state[params[0]].values())
    rows_and_columns = 4 * (20 + 30) if cls is EmoFact else 0
    assert size == per_element * 20 * 30 + rows_and_columns


@pytest.mark.parametrize("elements", [7, 100, 10_000])
def test_a_bounded_rule_sees_each_element_once(elements: int) -> None:
    params, grads = ([torch.arange(n, dtype=torch.float32) for n in (5, 40, 1, 300)] for _ in range(2))
    states: list[State] = [{"twice": 2 * param} for param in params]
    seen = []

    def add(bucket: Bucket, _: Hyperparameters) -> None:
        seen.append(sum(p.numel() for p in bucket.params))
        for p, g, state in bucket:
            p.add_(g).add_(state["twice"])

    pieces.bounded(add, elements)(Bucket(params, grads, states), Hyperparameters(0, 0, 0, 0, 0))
    assert sum(seen) == 346
    assert max(seen) <= elements
    for param, grad in zip(params, grads, strict=True):
        assert torch.equal(param, 4 * grad)


def test_what_has_temporaries_gets_its_list_in_parts() -> None:
    assert list(pieces.runs_of([3, 3, 9, 1, 1, 2], 4)) == [(0, 1), (1, 2), (2, 3), (3, 6)]
    assert list(pieces.runs_of([2, 2, 2], 4)) == [(0, 2), (2, 3)]
    assert list(pieces.runs_of([], 4)) == []


class ScalarReads(TorchDispatchMode):
    """Counts how often a tensor is read as a number, for which a device would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@each_implementation
def test_a_step_reads_no_number_from_a_tensor_but_the_loss(cls: type[EmoOptimizer], implementation: str) -> None:
    """What else is read is whether gradients are finite, where there is no kernel that leaves out what is not."""
    params = parameters()
    nonfinite = "leave_out" if implementation == "native" else "propagate"
    optimizer = make(cls, params, implementation, nonfinite=nonfinite)
    run(optimizer, range(1))
    give_gradients(params, 1)
    optimizer.observe(torch.tensor(1.0))
    with ScalarReads() as reads:  # type: ignore[no-untyped-call]
        optimizer.step()
    assert reads.count == (2 if rule_of(cls) is Tion and implementation == "native" else 1)
