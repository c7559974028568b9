"""TRL's policy-gradient and preference losses, in its own trainers: with the robust law training goes on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny

pytest.importorskip("trl")

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]


@pytest.fixture(autouse=True)
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.padding_side = "left"
    return made


def model() -> LlamaForCausalLM:
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        )
    )  # fmt: skip


def settings(folder: Path, law: str, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "optim": "emonavi", "optim_args": f"emo_law={law}", "logging_steps": 1,
        "learning_rate": 2e-3, "lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "bf16": False,
        "disable_tqdm": True, "save_strategy": "no", "seed": 0, "gradient_checkpointing": False,
    } | changes  # fmt: skip


def share_of_a(completions: list[str], **kwargs: Any) -> list[float]:
    return [completion.split().count("a") / 6 for completion in completions]


def grpo(folder: Path, law: str) -> tuple[list[dict[str, Any]], list[str]]:
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        **settings(folder, law, max_steps=80), per_device_train_batch_size=8, num_generations=8,
        max_completion_length=6, temperature=1.0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model(), reward_funcs=share_of_a, args=args, processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["b c", "d e", "f g", "h b"] * 8}),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert unwrap(trainer.optimizer).emotion.observations == 80
    return tiny.train_lines(trainer), [str(w.message) for w in caught if "below zero" in str(w.message)]


def mean(lines: list[dict[str, Any]], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def test_grpo_freezes_under_v31_with_a_warning_and_learns_under_the_robust_law(tmp_path: Path) -> None:
    frozen, said = grpo(tmp_path / "v3.1", "v3.1")
    assert min(line["loss"] for line in frozen) < 0
    assert mean(frozen[10:], "emo/coefficient_mean") < 0.05
    assert mean(frozen[-10:], "reward") < 0.3
    assert len(said) == 1
    lines, said = grpo(tmp_path / "robust", "robust")
    assert said == []
    assert min(line["emo/coefficient_min"] for line in lines) > 0.1
    assert mean(lines[-10:], "reward") > 0.8


@pytest.mark.parametrize("eos_bias", [-4.0, -6.0])
def test_grpo_whose_losses_are_rounding_errors_with_a_rare_large_one_is_not_frozen(
    eos_bias: float, tmp_path: Path
) -> None:
    """Completions that seldom end early are all as long, and then advantages cancel in a loss of 1e-8."""
    from trl import GRPOConfig, GRPOTrainer

    trained = model()
    trained.lm_head = nn.Linear(16, len(WORDS))
    with torch.no_grad():
        trained.lm_head.bias.zero_()[WORDS.index("<eos>")] = eos_bias
    args = GRPOConfig(
        **settings(tmp_path, "robust", max_steps=50), per_device_train_batch_size=8, num_generations=8,
        max_completion_length=6, temperature=1.0,
    )  # fmt: skip
    felt = tiny.Felt()
    trainer = GRPOTrainer(
        trained, reward_funcs=share_of_a, args=args, processing_class=tokenizer(), callbacks=[felt],
        train_dataset=Dataset.from_dict({"prompt": ["b c", "d e", "f g", "h b"] * 8}),
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="most losses are next to zero"):
        trainer.train()
    lines = tiny.train_lines(trainer)
    factors = [line["emo/coefficient"] for line in lines]
    assert sum(abs(loss) < 1e-6 for loss in felt.losses) > 40
    assert max(map(abs, felt.losses)) > 1e-3
    assert sum(factors) / len(factors) > 0.9
    assert sum(factor < 0.2 for factor in factors) <= 1  # a large one that comes before any that is not above zero
    assert mean(lines[-10:], "reward") > 0.8


@pytest.mark.parametrize(("loss_type", "same"), [("sigmoid", True), ("robust", False)])
def test_dpo_learns_under_the_robust_law_which_is_v31_where_the_loss_is_above_zero(
    loss_type: str, same: bool, tmp_path: Path
) -> None:
    from trl import DPOConfig, DPOTrainer

    def run(law: str) -> list[dict[str, Any]]:
        args = DPOConfig(
            **settings(tmp_path / law, law, max_steps=40), per_device_train_batch_size=8, loss_type=loss_type,
            label_smoothing=0.3 if loss_type == "robust" else 0.0, max_length=16,
        )  # fmt: skip
        pairs = {"prompt": ["b c", "d e"] * 32, "chosen": [" a a a"] * 64, "rejected": [" h h h"] * 64}
        trainer = DPOTrainer(
            model(), ref_model=model(), args=args, processing_class=tokenizer(), train_dataset=Dataset.from_dict(pairs)
        )
        trainer.train()
        return tiny.train_lines(trainer)

    published, robust = run("v3.1"), run("robust")
    if same:
        assert [line["loss"] for line in robust] == [line["loss"] for line in published]
    else:
        assert mean(published[-10:], "emo/coefficient_mean") < 0.05
        assert mean(robust[-10:], "emo/coefficient_mean") > 1.0
        assert robust[-1]["loss"] < 2 * published[-1]["loss"] < 0
