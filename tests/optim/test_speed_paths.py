"""What a step does without, and does without kernels: memory, waiting for a device. Nothing in here is timed."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from emo_hf import EmoNavi, EmoOptimizer
from emo_hf.optim import pieces
from emo_hf.optim.kernels import build
from emo_hf.optim.rules.tion import Tion
from emo_hf.optim.update import Bucket, Hyperparameters, State
from tests.emo_cases import (
    OF_EACH_RULE,
    ScalarReads,
    each_implementation_of_a_rule,
    each_rule,
    give_gradients,
    make,
    parameters,
    rule_of,
    run,
)
from tests.optim import memory_of_a_step
from tests.ranks import begin


def trained(
    cls: type[EmoOptimizer], shapes: list[tuple[int, ...]], implementation: str | None, steps: int
) -> list[torch.Tensor]:
    params = parameters(shapes)
    run(make(cls, params, implementation, lr=1e-2), range(steps))
    return [param.detach() for param in params]


def test_without_a_compiler_one_line_of_log_and_plain_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    build.kernels.cache_clear()
    try:
        for cls in OF_EACH_RULE:
            for ours, slow in zip(*(trained(cls, [(3, 4), (5,)], name, 3) for name in (None, "single")), strict=True):
                torch.testing.assert_close(ours, slow, rtol=1e-5, atol=5e-6)
        assert [record.name for record in caplog.records] == [build.logger.name]
        with pytest.raises(RuntimeError, match="native=True needs a C compiler"):
            run(EmoNavi(parameters(), native=True), range(1))
    finally:
        build.kernels.cache_clear()


def test_asking_for_the_kernels_on_another_device_is_an_error() -> None:
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones_like(param)
    optimizer = EmoNavi([param], native=True)
    optimizer.observe(1.0)
    with pytest.raises(RuntimeError, match="parameters are on meta: leave native=None"):
        optimizer.step()


@pytest.fixture(scope="module")
def kibibytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The extra memory of a step of each rule, in each way."""
    folder = tmp_path_factory.mktemp("memory")
    process = begin(memory_of_a_step.measure, str(folder / "kibibytes"), output=folder / "output")
    process.join()
    assert process.exitcode == 0, (folder / "output").read_text()
    found: dict[str, int] = json.loads((folder / "kibibytes").read_text())
    return found


@pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler")
@pytest.mark.skipif(not os.access(memory_of_a_step.PEAK, os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize("name", memory_of_a_step.MEASURED)
def test_the_extra_memory_of_a_step_does_not_grow_with_the_model(name: str, kibibytes: dict[str, int]) -> None:
    # 192 MiB of parameters, of which copies are held for at most 64 MiB at a time.
    *_, mebibytes = memory_of_a_step.WAYS[memory_of_a_step.MEASURED[name][1]]
    assert kibibytes[name] < mebibytes * 1024


@pytest.mark.parametrize("implementation", ["single", "foreach"])
@each_rule
def test_large_tensors_are_worked_on_in_parts_as_small_ones_are_whole(
    cls: type[EmoOptimizer], implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation not in rule_of(cls).implementations:
        pytest.skip("this rule has no such implementation")
    shapes = [(30, 20), (7, 5, 4), (400,), (300, 3), (2, 900), (6,), ()]
    whole = trained(cls, shapes, implementation, 5)
    monkeypatch.setattr(pieces, "PIECE", 50)
    torch.testing.assert_close(trained(cls, shapes, implementation, 5), whole, rtol=1e-6, atol=1e-7)


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
    assert all(torch.equal(param, 4 * grad) for param, grad in zip(params, grads, strict=True))
    assert list(pieces.runs_of([3, 3, 9, 1, 1, 2], 4)) == [(0, 1), (1, 2), (2, 3), (3, 6)]


@each_implementation_of_a_rule
def test_a_step_reads_no_number_from_a_tensor_but_the_loss(cls: type[EmoOptimizer], implementation: str) -> None:
    """What else is read is whether gradients are finite, where there is no kernel that leaves out what is not."""
    params = parameters()
    nonfinite = "leave_out" if implementation == "native" else "propagate"
    optimizer = make(cls, params, implementation, nonfinite=nonfinite)
    run(optimizer, range(1))
    give_gradients(params, 1)
    optimizer.observe(torch.tensor(1.0))
    with ScalarReads() as reads:
        optimizer.step()
    assert reads.count == (2 if rule_of(cls) is Tion and implementation == "native" else 1)
