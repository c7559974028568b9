"""The table of options: what stands in it is an option everywhere, and what does not is one nowhere."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

import emo_hf
from emo_hf.optim.options import TABLE
from emo_hf.optim.version import describe
from emo_hf.trainer.options import EmoOptions
from tests.emo_cases import parameters


@pytest.mark.parametrize("name", ["average_weights", "clip_value", "emo_sync", "emo_law"])
def test_an_option_whose_row_is_deleted_is_gone_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"average_weights": "true", "clip_value": "1.0", "emo_sync": "local", "emo_law": "none"}
    args = TrainingArguments(use_cpu=True, optim_args=f"{name}={values[name]}", report_to="none")
    assert name in EmoOptions.of(args).optimizer
    assert f" {name}: " in (emo_hf.EmoNavi.__doc__ or "")
    documented = emo_hf.EmoNavi.__doc__
    monkeypatch.delitem(TABLE, name)
    emo_hf.EmoNavi(parameters())
    with pytest.raises(TypeError, match=f"has no option {name}"):
        emo_hf.EmoNavi(parameters(), **{name: None})
    args.optim_args += ",beta1=0.8"  # another text, which has not been read before
    with pytest.raises(ValueError, match=f"unknown option '{name}'"):
        EmoOptions.of(args)
    emo_hf.EmoNavi.__doc__ = "Adam without bias correction."
    describe(emo_hf.EmoNavi)
    assert f" {name}: " not in (emo_hf.EmoNavi.__doc__ or "")
    emo_hf.EmoNavi.__doc__ = documented


def test_every_option_has_a_default_that_it_accepts_and_a_help() -> None:
    for name, option in TABLE.items():
        assert option.read(option.default) == option.default, name
        assert option.help
