"""register(): the names parse, train, go away again, and survive a reload."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import emo_hf
from emo_hf import create_optimizer
from emo_hf.integrations import accelerate as loss_tap
from emo_hf.integrations import patches
from emo_hf.trainer import registry
from emo_hf.trainer.registry import SUPPORTED_TRANSFORMERS
from tests import tiny
from tests.trainer.kit import emo_of, lora, trained


def test_a_model_learns_with_it(tmp_path: Path) -> None:
    trainer = trained(tmp_path, learning_rate=3e-3, num_train_epochs=6)
    assert emo_of(trainer).emotion.observations == trainer.state.global_step == 60
    losses = [line["loss"] for line in tiny.train_lines(trainer)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_name_with_8bit_trains_bfloat16_weights_in_8_bits_and_can_be_changed(tmp_path: Path) -> None:
    trainer = trained(tmp_path, model=tiny.classifier(dropout=0.0).bfloat16(), optim="emolynx_8bit", max_steps=4)
    optimizer = emo_of(trainer)
    assert type(optimizer) is emo_hf.EmoLynx
    assert optimizer.defaults["state"] == optimizer.defaults["compensate"] == "8bit"
    corrections = [state["compensation"] for state in optimizer.state.values()]
    assert {correction.dtype for correction in corrections} == {torch.int8}
    assert any(correction.any() for correction in corrections)
    defaults = made_of(tmp_path, optim="emonavi_8bit", optim_args="compensate=true").defaults
    assert (defaults["state"], defaults["compensate"]) == ("8bit", True)


# Options


def made_of(folder: Path, **changes: Any) -> Any:
    """The optimizer that a Trainer makes of its arguments."""
    return tiny.trainer(folder, **changes).create_optimizer()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.97, "adam_epsilon": 1e-6, "weight_decay": 0.2},
            {"lr": 3e-4, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.2},
        ),
        (
            {"optim_args": "use_shadow=true, beta2=0.995, fused=False, eps=1e-7"},
            {"use_shadow": True, "betas": (0.9, 0.995), "fused": False, "eps": 1e-7},
        ),
        (
            {"optim": "emoclan", "optim_args": {"use_shadow": True, "fused": None, "beta2": 0.995,
                                                "lynx_betas": (0.8, 0.95), "self_stop": "off"}},
            {"use_shadow": True, "fused": None, "betas": (0.9, 0.995), "lynx_betas": (0.8, 0.95)},
        ),
    ],
    ids=["of the Trainer", "a text", "Python values"],
)  # fmt: skip
def test_options_reach_the_optimizer(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    decay, no_decay = made_of(tmp_path, **changes).param_groups
    assert {name: decay[name] for name in expected} == expected
    assert no_decay["weight_decay"] == 0.0


NO_SUCH_VERSION = "version of EmoNavi must be one of v3.1, v3.0, v3.6, got 'v3.9'"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("use_shadow=true,", "'' is not of the form key=value"),
        ("beta2=0.9=5", "'beta2=0.9=5' is not of the form key=value"),
        ("betas=(0.9,0.99)", "give beta1 and beta2, or --adam_beta1 and --adam_beta2"),
        ("beta1=0.8,beta1=0.9", "beta1 is given twice"),
        ({"use_shadow": "yes"}, "use_shadow='yes' is not acceptable: it takes true or false"),
        ("beta2=1.0", "beta2='1.0' is not acceptable: it takes a number of at least 0 and below 1"),
        ("use_shadw=true", "did you mean use_shadow"),
        ({"lr": 1e-4}, "the learning rate is --learning_rate"),
        ("version=v3.5", "version='v3.5' is not acceptable: it takes one of v3.1, v3.0, v3.6"),
        ("version=v3.9", NO_SUCH_VERSION),
        ("lynx_betas=0.9/0.99", "EmoNavi v3.1 has no option lynx_betas"),
        ("foreach=true,fused=true", "foreach and fused cannot both be True"),
        ("self_stop=maybe", "one of off, log, save, stop"),
    ],
)
def test_bad_optim_args_fail_when_the_trainer_is_made_and_say_what_is_known(
    given: str | dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"known|takes|twice|must be|no option|cannot") as caught:
        tiny.trainer(tmp_path, optim_args=given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("by_class", "given", "error", "said"),
    [
        (True, {"beta1": 0.8}, TypeError, r"EmoNavi v3.1 has no option beta1 \(give betas=\(beta1, beta2\)\)"),
        (True, {"self_stop": "stop"}, TypeError, "EmoNavi v3.1 has no option self_stop .*EmoEarlyStoppingCallback"),
        (True, {"version": "v3.6", "denominator": "medium"}, ValueError, "takes one of published, long, quieter"),
        (False, {"self_stop": "stop"}, ValueError, "self_stop: an optimizer cannot stop a loop; use EmoEarlyStopping"),
        (False, {"betas_": (0.9, 0.99)}, ValueError, "unknown option 'betas_'"),
        (False, {"version": "v3.9"}, ValueError, NO_SUCH_VERSION),
    ],
)
def test_an_optimizer_made_by_its_class_or_by_hand_says_what_to_do_about_wrong_options(
    by_class: bool, given: dict[str, object], error: type[Exception], said: str, tmp_path: Path
) -> None:
    way = {"optim": "adamw_torch", "optimizer_cls_and_kwargs": (emo_hf.EmoNavi, given)}
    make = partial(made_of, tmp_path, **way) if by_class else partial(create_optimizer, "emonavi", **given)
    with pytest.raises(error, match=said):
        make(model=tiny.classifier())


def test_create_optimizer_takes_the_defaults_of_the_generation_and_beta1_and_beta2() -> None:
    made = create_optimizer("emosens", tiny.classifier())
    assert (made.defaults["lr"], made.defaults["betas"]) == (1.0, (0.9, 0.995))
    made = create_optimizer("emolynx", tiny.classifier(), version="v3.0", beta1=0.8, lr=0.1)
    assert (made.version, made.defaults["lr"], made.defaults["betas"]) == ("v3.0", 0.1, (0.8, 0.99))
    with pytest.raises(ValueError, match="unknown optimizer 'emo'; known: emonavi, "):
        create_optimizer("emo", tiny.classifier())


def test_an_adapter_model_gets_named_groups_with_their_own_learning_rates(tmp_path: Path) -> None:
    args = {"optim_args": {"lora_b_lr_ratio": 16, "head_weight_decay": 0}, "lr_scheduler_type": "constant"}
    trainer = trained(tmp_path, model=lora(), max_steps=3, **args)
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["lora_b"] == pytest.approx(16e-3)
    assert rates["lora_a"] == rates["head"] == pytest.approx(1e-3)
    last = tiny.train_lines(trainer)[-1]
    assert last["emo/effective_lr/lora_b"] == pytest.approx(16e-3 * last["emo/coefficient"])
    assert last["emo/effective_lr/lora_a"] == pytest.approx(1e-3 * last["emo/coefficient"])


def test_without_adapters_a_subclass_keeps_its_say_over_weight_decay(tmp_path: Path) -> None:
    class NothingDecays(transformers.Trainer):
        def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
            return []

    (group,) = made_of(tmp_path, kind=NothingDecays, weight_decay=0.1).param_groups
    assert group["weight_decay"] == 0.0


# There and away again


def ours() -> list[str]:
    defaults = transformers.trainer.DEFAULT_CALLBACKS
    found = [callback.__name__ for callback in defaults if "emo_hf" in callback.__module__]
    return found + [member.value for member in OptimizerNames if member.value == "emonavi"]


def test_registering_twice_changes_nothing_and_unregistering_takes_all_of_it_back(tmp_path: Path) -> None:
    emo_hf.register()
    assert ours() == ["EmoCallback", "emonavi"]
    emo_hf.unregister()
    emo_hf.unregister()
    assert ours() == []
    assert not {member.value for member in OptimizerNames} & emo_hf.FAMILY.keys()
    assert not hasattr(OptimizerNames, "EMONAVI")
    with pytest.raises(ValueError, match="emonavi"):
        TrainingArguments(output_dir=str(tmp_path), optim="emonavi")
    emo_hf.register()
    assert TrainingArguments(output_dir=str(tmp_path), optim="emonavi").optim.value == "emonavi"


def test_moved_internals_are_named_together_with_the_supported_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("transformers.trainer_optimizer._OPTIMIZER_HANDLERS")
    with pytest.raises(RuntimeError, match=f"_OPTIMIZER_HANDLERS.*{SUPPORTED_TRANSFORMERS}"):
        emo_hf.register()


def test_all_may_be_reloaded_before_and_after_registering_and_still_shows_each_loss_once_and_comes_off(
    tmp_path: Path,
) -> None:
    emo_hf.unregister()
    loss_tap.uninstall()
    untapped = Accelerator.backward
    for _ in range(2):
        for module in (registry, emo_hf, loss_tap):
            importlib.reload(module)
        emo_hf.register()
        loss_tap.install()
        assert ours() == ["EmoCallback", "emonavi"]
        assert getattr(Accelerator.backward, patches.OURS) is untapped
    assert [line["emo/observations"] for line in tiny.train_lines(trained(tmp_path, max_steps=2))] == [1, 2]
    for module in (registry, emo_hf, loss_tap):
        importlib.reload(module)
    emo_hf.unregister()
    loss_tap.uninstall()
    assert ours() == []
    assert Accelerator.backward is untapped
    loss_tap._switched_off = False
