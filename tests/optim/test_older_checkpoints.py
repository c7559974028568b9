"""Optimizer states that released versions have written are read, and go on as they would have gone on there.

`tests/data/checkpoints_0.1.0.pt` was written by version 0.1.0: for each entry the state and the parameters after 12
steps of `emo_cases.run`, and the parameters and the emotion after 24.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import emo_hf
from emo_hf import EmoOptimizer
from tests.emo_cases import run, two_groups

FILE = Path(__file__).parents[1] / "data" / "checkpoints_0.1.0.pt"
SAVED: dict[str, Any] = torch.load(FILE, weights_only=True)


def as_it_was(entry: dict[str, Any]) -> EmoOptimizer:
    options = {("native" if name == "compile" else name): value for name, value in entry["options"].items()}
    cls = getattr(emo_hf, entry["state"]["param_groups"][0]["emotion"]["optimizer"])
    return cls(two_groups([nn.Parameter(param.clone()) for param in entry["params"]]), **options)


@pytest.mark.parametrize("name", SAVED)
def test_a_state_of_version_0_1_0_goes_on_to_the_last_bit(name: str) -> None:
    entry = SAVED[name]
    optimizer = as_it_was(entry)
    optimizer.load_state_dict(entry["state"])
    assert optimizer.emotion.coefficient == pytest.approx(1.413304)
    run(optimizer, range(12, 24))
    assert {key: getattr(optimizer.emotion, key) for key in entry["emotion"]} == entry["emotion"]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, expected in zip(params, entry["after"], strict=True):
        assert torch.equal(param.detach(), expected)


def test_what_an_option_was_called_then_is_what_it_is_called_now() -> None:
    entry = SAVED["EmoNavi-plain"]
    assert entry["state"]["param_groups"][0]["compile"] is False
    optimizer = as_it_was(entry)
    optimizer.param_groups[0]["native"] = None
    optimizer.load_state_dict(entry["state"])
    assert optimizer.param_groups[0]["native"] is False
    assert "compile" not in optimizer.param_groups[0]


def test_an_option_is_taken_by_its_former_name_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="compile is called native now"):
        optimizer = emo_hf.EmoLynx([nn.Parameter(torch.ones(1))], compile=False)
    assert optimizer.param_groups[0]["native"] is False


@pytest.mark.parametrize("version", ["v3.0", "v3.6"])
def test_a_state_that_names_no_generation_is_of_v3_1(version: str) -> None:
    entry = SAVED["EmoNavi-plain"]
    optimizer = emo_hf.EmoNavi(two_groups([nn.Parameter(p.clone()) for p in entry["params"]]), version=version)
    with pytest.raises(ValueError, match=f"saved by EmoNavi v3.1, not by EmoNavi {version}: .*version=v3.1"):
        optimizer.load_state_dict(entry["state"])
