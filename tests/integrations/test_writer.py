"""`writer=SummaryWriter(...)`: every step's emotion and rates are in its event file, and it stays where it is."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import emo_hf
from emo_hf import EmoLynx, EmoNavi, EmoOptimizer, EmoSens
from tests import tiny
from tests.emo_cases import give_gradients, losses, parameters


def train(optimizer: EmoOptimizer, steps: range, shown: list[float] | None = None) -> list[dict[str, float]]:
    """Steps with losses of all kinds; what each of them was like."""
    seen = []
    for step in steps:
        give_gradients([param for group in optimizer.param_groups for param in group["params"]], step)
        optimizer.observe((shown or losses(steps.stop))[step])
        optimizer.step()
        emotion = optimizer.emotion
        line = {"coefficient": emotion.coefficient, "scalar": emotion.scalar, "loss_long": emotion.long}
        rates = {f"effective_lr/{name}": rate for name, rate in optimizer.effective_lr.items()}
        seen.append({f"emo/{name}": value for name, value in (line | rates).items()})
    return seen


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of the event files of a folder, as (step, value)."""
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.mark.parametrize("cls", [EmoNavi, EmoLynx, EmoSens])
def test_each_steps_emotion_and_rates_are_in_the_event_file(cls: type[EmoOptimizer], tmp_path: Path) -> None:
    one, other = parameters()
    groups = [{"params": [one], "name": "one"}, {"params": [other], "name": "other", "lr": 0.5}]
    with SummaryWriter(str(tmp_path)) as writer:
        seen = train(cls(groups, lr=0.25, writer=writer), range(9))
    curves = written(tmp_path)
    for tag in seen[0]:
        assert curves[tag] == [(step, pytest.approx(line[tag], rel=1e-6)) for step, line in enumerate(seen)]
    others = ("effective_lr", "loss_short", "quiet", "should_stop", "observations", "skipped")
    assert {f"emo/{name}" for name in others} <= curves.keys()


def test_a_loss_that_is_skipped_leaves_a_point_too_and_a_resumed_run_goes_on_at_its_step(tmp_path: Path) -> None:
    shown = losses(7)
    shown[5] = float("nan")
    with SummaryWriter(str(tmp_path)) as writer:
        first = EmoNavi(parameters(), lr=0.25, writer=writer)
        train(first, range(4), shown)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = EmoNavi(parameters(), lr=0.25, writer=writer)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        train(second, range(4, 7), shown)
    curves = written(tmp_path)
    assert [step for step, _ in curves["emo/scalar"]] == list(range(7))
    assert curves["emo/skipped"] == [(step, float(step >= 5)) for step in range(7)]
    assert curves["emo/effective_lr"][5] == (5, 0.25)


class Counter:
    """Anything with `add_scalar` will do."""

    def __init__(self) -> None:
        self.calls = 0
        self.lock = threading.Lock()  # cannot be pickled, as a real writer cannot

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.calls += 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_writer_is_not_copied_or_pickled_and_the_original_keeps_it(copied: Any) -> None:
    counter = Counter()
    optimizer = emo_hf.create_optimizer("emonavi", tiny.classifier(), writer=counter)
    train(optimizer, range(2))
    twin, calls = copied(optimizer), counter.calls
    assert calls > 0
    train(twin, range(2, 4))
    assert counter.calls == calls
    train(optimizer, range(2, 4))
    assert counter.calls == 2 * calls
    assert twin.emotion == optimizer.emotion
