"""TRL's own trainers: supervised with an adapter, and policy-gradient and preference losses under the robust law."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

from emo_hf.integrations.accelerate import unwrap
from tests import tiny

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

pytestmark = pytest.mark.usefixtures("registered")

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]
Lines = list[dict[str, Any]]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.padding_side = "left"
    return made


def model() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes, **special))


def settings(folder: Path, law: str, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "optim": "emonavi", "optim_args": f"emo_law={law}", "logging_steps": 1,
        "learning_rate": 2e-3, "lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "bf16": False,
        "disable_tqdm": True, "save_strategy": "no", "seed": 0, "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
    } | changes  # fmt: skip


def mean(lines: Lines, key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


def test_the_supervised_trainer_trains_an_adapter_and_feels_the_loss_that_it_logs(tmp_path: Path) -> None:
    args = settings(tmp_path, "v3.1", max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = SFTTrainer(
        model(), args=SFTConfig(**args, max_length=16), processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"text": ["a b c d e f"] * 24}),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert unwrap(trainer.optimizer).emotion.observations == len(lines) == 4
    assert lines[0]["emo/loss_short"] == lines[0]["loss"]
    assert "emo/effective_lr/lora_b" in lines[-1]


def grpo(
    folder: Path, law: str, steps: int, trained: Any = None, *callbacks: TrainerCallback
) -> tuple[Lines, list[str]]:
    """The log lines of a run that is rewarded for the letter a, and its warnings."""

    def share_of_a(completions: list[str], **kwargs: Any) -> list[float]:
        return [completion.split().count("a") / 6 for completion in completions]

    args = GRPOConfig(
        **settings(folder, law, max_steps=steps), num_generations=8, max_completion_length=6, temperature=1.0
    )
    trainer = GRPOTrainer(
        trained or model(), reward_funcs=share_of_a, args=args, processing_class=tokenizer(),
        callbacks=list(callbacks), train_dataset=Dataset.from_dict({"prompt": ["b c", "d e", "f g", "h b"] * 8}),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return tiny.train_lines(trainer), [str(warning.message) for warning in caught]


def test_grpo_freezes_under_v31_with_a_warning_and_learns_under_the_robust_law(tmp_path: Path) -> None:
    frozen, said = grpo(tmp_path / "v3.1", "v3.1", 40)
    assert min(line["loss"] for line in frozen) < 0
    assert mean(frozen[10:], "emo/coefficient_mean") < 0.05
    assert mean(frozen[-10:], "reward") < 0.3
    assert sum("below zero" in line for line in said) == 1
    lines, said = grpo(tmp_path / "robust", "robust", 60)
    assert not any("below zero" in line for line in said)
    assert min(line["emo/coefficient_min"] for line in lines) > 0.1
    assert mean(lines[-10:], "reward") > 0.8


def test_grpo_whose_losses_are_rounding_errors_with_a_rare_large_one_is_not_frozen(tmp_path: Path) -> None:
    """Completions that seldom end early are all as long, and then advantages cancel in a loss of 1e-8."""
    trained, felt = model(), tiny.Felt()
    trained.lm_head = nn.Linear(16, len(WORDS))
    with torch.no_grad():
        trained.lm_head.bias.zero_()[WORDS.index("<eos>")] = -4.0
    lines, said = grpo(tmp_path, "robust", 50, trained, felt)
    assert sum("most losses are next to zero" in line for line in said) == 1
    factors = [line["emo/coefficient"] for line in lines]
    assert sum(abs(loss) < 1e-6 for loss in felt.losses) > 40
    assert max(map(abs, felt.losses)) > 1e-3
    assert sum(factors) / len(factors) > 0.9
    assert sum(factor < 0.2 for factor in factors) <= 1  # a large one that comes before any that is not above zero
    assert mean(lines[-10:], "reward") > 0.8


def dpo(folder: Path, law: str, loss_type: str, steps: int) -> Lines:
    smoothing = 0.3 if loss_type == "robust" else 0.0
    args = settings(folder / law, law, max_steps=steps, loss_type=loss_type, label_smoothing=smoothing, max_length=16)
    pairs = {"prompt": ["b c", "d e"] * 32, "chosen": [" a a a"] * 64, "rejected": [" h h h"] * 64}
    given = {"processing_class": tokenizer(), "train_dataset": Dataset.from_dict(pairs)}
    trainer = DPOTrainer(model(), ref_model=model(), args=DPOConfig(**args), **given)
    trainer.train()
    return tiny.train_lines(trainer)


def test_dpo_learns_under_the_robust_law_which_is_v31_where_the_loss_is_above_zero(tmp_path: Path) -> None:
    published, robust = (dpo(tmp_path, law, "sigmoid", 8) for law in ("v3.1", "robust"))
    assert [line["loss"] for line in robust] == [line["loss"] for line in published]
    published, robust = (dpo(tmp_path, law, "robust", 40) for law in ("v3.1", "robust"))
    assert mean(published[-10:], "emo/coefficient_mean") < 0.05
    assert mean(robust[-10:], "emo/coefficient_mean") > 1.0
    assert robust[-1]["loss"] < 2 * published[-1]["loss"] < 0
