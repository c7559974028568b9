"""Weights and their average change places all or none, whatever interrupts it; rounding at random is unbiased."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emo_hf.optim.average_tensors import rounded_at_random
from tests.emo_cases import assert_identical, held
from tests.optim.test_weight_average import emonavi, trained


class Interrupt(TorchDispatchMode):
    """Raises after the n-th tensor operation, and after each later one where it `goes_on`."""

    def __init__(self, after: int, *, goes_on: bool = False) -> None:
        super().__init__()
        self.left, self.goes_on = after, goes_on

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left == 0 or (self.goes_on and self.left < 0):
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupt_after_any_operation_leaves_all_parameters_the_average_or_none(dtype: torch.dtype) -> None:
    made, params = trained(emonavi, 5, dtype)
    weights = held(params)
    made[1].eval()
    average = held(params)
    for there, back, ends in ((made[1].train, made[1].eval, weights), (made[1].eval, made[1].train, average)):
        for after in range(1, 1000):
            try:
                with Interrupt(after):
                    there()
                break
            except KeyboardInterrupt:
                found = [all(map(torch.equal, params, state)) for state in (weights, average)]
                assert sorted(found) == [False, True]
                assert made[1].shows_average is found[1]
                there()
                assert_identical(held(params), ends)
                back()
        assert after > 2 * len(params)
    made[1].train()
    assert_identical(held(params), weights)


def test_an_exchange_that_was_cut_off_twice_is_finished_by_the_next_call() -> None:
    made, params = trained(emonavi, 5)
    weights = held(params)
    made[1].eval()
    average = held(params)
    made[1].train()
    for show, wanted in ((made[1].eval, average), (made[1].train, weights)):
        with pytest.raises(KeyboardInterrupt), Interrupt(4, goes_on=True):
            show()
        show()
        assert_identical(held(params), wanted)


def test_rounding_at_random_is_right_on_average_and_the_same_for_the_same_seed() -> None:
    exact = torch.full((20_000,), 1.001)
    rounded = rounded_at_random(exact, torch.bfloat16, seed=3)
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert abs(float(rounded.float().mean()) - 1.001) < 2e-4
    assert torch.equal(rounded, rounded_at_random(exact, torch.bfloat16, seed=3))
    assert not torch.equal(rounded, rounded_at_random(exact, torch.bfloat16, seed=4))
