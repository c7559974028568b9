"""Reporters of the real Trainer: what they are given is read back from what one of them has written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import emo_hf
from tests import tiny


@pytest.mark.parametrize("given", [False, True])
def test_every_metric_arrives_with_its_step_and_value(given: bool, registered: None, tmp_path: Path) -> None:
    if given:  # to a Trainer that nothing is registered for
        emo_hf.unregister()
    own = {"optim": "adamw_torch", "callbacks": [emo_hf.EmoCallback("v3.1")]} if given else {}
    trainer = tiny.trainer(tmp_path, report_to="tensorboard", logging_steps=2, learning_rate=3e-3, **own)
    trainer.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    lines = tiny.train_lines(trainer)
    names = [name for name in lines[0] if name.startswith("emo/")]
    assert len(names) >= 12
    for name in names:
        curve = [(event.step, event.value) for event in read.Scalars(f"train/{name}")]
        assert curve == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
