"""register(): the names parse, train, and go away again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments
from transformers.training_args import OptimizerNames

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.registry import SUPPORTED_TRANSFORMERS, is_registered
from tests import tiny


def test_a_model_learns_with_it(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, learning_rate=3e-3, num_train_epochs=6)
    trainer.train()
    assert unwrap(trainer.optimizer).emotion.observations == trainer.state.global_step == 60
    losses = [line["loss"] for line in tiny.train_lines(trainer)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("name", ["emonavi", "emolynx"])
def test_the_name_with_8bit_trains_bfloat16_weights_in_8_bits(name: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, model=tiny.classifier(dropout=0.0).bfloat16(), optim=f"{name}_8bit")
    trainer.train()
    optimizer = unwrap(trainer.optimizer)
    assert type(optimizer) is emo_hf.FAMILY[name]
    assert optimizer.defaults["state"] == optimizer.defaults["compensate"] == "8bit"
    corrections = [state["compensation"] for state in optimizer.state.values()]
    assert {correction.dtype for correction in corrections} == {torch.int8}
    assert any(correction.any() for correction in corrections)


def test_what_a_name_with_8bit_begins_with_can_be_changed(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim="emonavi_8bit", optim_args="compensate=true")
    trainer.create_optimizer()
    assert trainer.optimizer.defaults["state"] == "8bit"
    assert trainer.optimizer.defaults["compensate"] is True


def test_learning_rate_betas_epsilon_and_decay_come_from_the_trainers_own_arguments(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        tmp_path, learning_rate=3e-4, adam_beta1=0.8, adam_beta2=0.97, adam_epsilon=1e-6, weight_decay=0.2
    )
    decay, no_decay = trainer.create_optimizer().param_groups
    assert (decay["lr"], decay["betas"], decay["eps"], decay["weight_decay"]) == (3e-4, (0.8, 0.97), 1e-6, 0.2)
    assert no_decay["weight_decay"] == 0.0


def test_optim_args_reach_the_optimizer_and_override_the_betas(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim_args="use_shadow=true, beta2=0.995, fused=false, eps=1e-7")
    group = trainer.create_optimizer().param_groups[0]
    assert (group["use_shadow"], group["betas"], group["fused"], group["eps"]) == (True, (0.9, 0.995), False, 1e-7)


def test_optim_args_may_be_a_dict_of_python_values(tmp_path: Path) -> None:
    given = {
        "use_shadow": True, "compensate": False, "fused": None, "beta2": 0.995, "lynx_betas": (0.8, 0.95),
        "decoupled_weight_decay": True, "self_stop": "off", "self_stop_patience": 2,
    }  # fmt: skip
    trainer = tiny.trainer(tmp_path, optim="emoclan", optim_args=given, max_steps=2)
    trainer.train()
    optimizer = unwrap(trainer.optimizer)
    group = optimizer.param_groups[0]
    assert (group["use_shadow"], group["compensate"], group["fused"]) == (True, False, None)
    assert (group["betas"], group["lynx_betas"], group["decoupled_weight_decay"]) == ((0.9, 0.995), (0.8, 0.95), True)
    assert optimizer.emotion.observations == 2


def test_a_dict_reaches_the_groups_of_an_adapter_too(tmp_path: Path) -> None:
    model = get_peft_model(tiny.classifier(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    trainer = tiny.trainer(tmp_path, model=model, optim_args={"lora_b_lr_ratio": 16, "head_weight_decay": 0})
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    assert groups["lora_b"]["lr"] == pytest.approx(16e-3)


def test_a_string_that_says_false_is_false(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, optim_args="use_shadow=False")
    assert trainer.create_optimizer().param_groups[0]["use_shadow"] is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use_shadow", "'use_shadow' is not of the form key=value"),
        ("use_shadow=true,", "'' is not of the form key=value"),
        ("beta2=0.9=5", "'beta2=0.9=5' is not of the form key=value"),
        ("use_shadow=yes", "use_shadow='yes' is not acceptable: it takes true or false"),
        ("beta2=1.0", "beta2='1.0' is not acceptable: it takes a number of at least 0 and below 1"),
        ("beta2=nan", "beta2='nan' is not acceptable"),
        ("use_shadw=true", "did you mean use_shadow"),
        ("lr=1e-4", "the learning rate is --learning_rate"),
        ("betas=(0.9,0.99)", "give beta1 and beta2, or --adam_beta1 and --adam_beta2"),
        ({"betas": (0.9, 0.99)}, "give beta1 and beta2, or --adam_beta1 and --adam_beta2"),
        ({"use_shadow": "yes"}, "use_shadow='yes' is not acceptable: it takes true or false"),
        ({"use_shadw": True}, "did you mean use_shadow"),
        ("version=v3.5", "version='v3.5' is not acceptable: it takes one of v3.1, v3.0, v3.6"),
        ("emo_law=v4", "emo_law='v4' is not acceptable: it takes"),
        ("version=v3.9", "version of EmoNavi must be one of v3.1, v3.0, v3.6, got 'v3.9'"),
        ("lynx_betas=0.9/0.99", "EmoNavi v3.1 has no option lynx_betas"),
        ("foreach=true,fused=true", "foreach and fused cannot both be True"),
        ("self_stop=maybe", "one of off, log, save, stop"),
        ("self_stop_patience=2.5", "a whole number of at least 1"),
        ("beta1=0.8,beta1=0.9", "beta1 is given twice"),
    ],
)
def test_bad_optim_args_fail_when_the_trainer_is_made_and_say_what_is_known(
    text: str | dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"known|takes|twice|must be|no option|cannot") as caught:
        tiny.trainer(tmp_path, optim_args=text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"beta1": 0.8}, TypeError, r"EmoNavi v3.1 has no option beta1 \(give betas=\(beta1, beta2\)\)"),
        ({"self_stop": "stop"}, TypeError, "EmoNavi v3.1 has no option self_stop .*use EmoEarlyStoppingCallback"),
        ({"lynx_betas": (0.9, 0.99)}, TypeError, "EmoNavi v3.1 has no option lynx_betas"),
        ({"version": "v3.9"}, ValueError, "version of EmoNavi must be one of v3.1, v3.0, v3.6, got 'v3.9'"),
        ({"version": "v3.6", "denominator": "medium"}, ValueError, "takes one of published, long, quieter"),
    ],
)
def test_an_optimizer_given_by_its_class_says_what_to_do_about_wrong_options(
    given: dict[str, object], error: type[Exception], said: str, tmp_path: Path
) -> None:
    trainer = tiny.trainer(tmp_path, optim="adamw_torch", optimizer_cls_and_kwargs=(emo_hf.EmoNavi, given))
    with pytest.raises(error, match=said):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"self_stop": "stop"}, ValueError, "self_stop: an optimizer cannot stop a loop; use EmoEarlyStopping"),
        ({"betas_": (0.9, 0.99)}, ValueError, "unknown option 'betas_'"),
        ({"lynx_betas": (0.9, 0.99)}, TypeError, "EmoNavi v3.1 has no option lynx_betas"),
        ({"version": "v3.9"}, ValueError, "version of EmoNavi must be one of v3.1, v3.0, v3.6, got 'v3.9'"),
    ],
)
def test_create_optimizer_says_what_to_do_about_wrong_options(
    given: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        emo_hf.create_optimizer("emonavi", tiny.classifier(), **given)


def test_create_optimizer_takes_the_defaults_of_the_generation_and_beta1_and_beta2() -> None:
    made = emo_hf.create_optimizer("emosens", tiny.classifier())
    assert (made.defaults["lr"], made.defaults["betas"]) == (1.0, (0.9, 0.995))
    made = emo_hf.create_optimizer("emolynx", tiny.classifier(), version="v3.0", beta1=0.8, lr=0.1)
    assert (made.version, made.defaults["lr"], made.defaults["betas"]) == ("v3.0", 0.1, (0.8, 0.99))


def test_an_adapter_model_gets_named_groups_with_their_own_learning_rates(tmp_path: Path) -> None:
    model = get_peft_model(tiny.classifier(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    trainer = tiny.trainer(tmp_path, model=model, optim_args="lora_b_lr_ratio=16", lr_scheduler_type="constant")
    trainer.train()
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

    trainer = NothingDecays(tiny.classifier(), tiny.arguments(tmp_path, weight_decay=0.1))
    (group,) = trainer.create_optimizer().param_groups
    assert group["weight_decay"] == 0.0


def test_registering_twice_changes_nothing_and_unregistering_takes_all_of_it_back(tmp_path: Path) -> None:
    emo_hf.register()
    assert [member.value for member in OptimizerNames].count("emonavi") == 1
    assert transformers.trainer.DEFAULT_CALLBACKS.count(emo_hf.EmoCallback) == 1
    assert is_registered()

    emo_hf.unregister()
    emo_hf.unregister()
    assert not is_registered()
    assert not {member.value for member in OptimizerNames} & emo_hf.FAMILY.keys()
    assert not hasattr(OptimizerNames, "EMONAVI")
    assert emo_hf.EmoCallback not in transformers.trainer.DEFAULT_CALLBACKS
    with pytest.raises(ValueError, match="emonavi"):
        TrainingArguments(output_dir=str(tmp_path), optim="emonavi")

    emo_hf.register()
    assert TrainingArguments(output_dir=str(tmp_path), optim="emonavi").optim.value == "emonavi"


def test_moved_internals_are_named_together_with_the_supported_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("transformers.trainer_optimizer._OPTIMIZER_HANDLERS")
    with pytest.raises(RuntimeError, match=f"_OPTIMIZER_HANDLERS.*{SUPPORTED_TRANSFORMERS}"):
        emo_hf.register()


def test_the_seq2seq_trainer_trains_with_it(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny.examples(16)]
    args = Seq2SeqTrainingArguments(**tiny.arguments(tmp_path, optim="emofact").to_dict() | {"max_steps": 4})
    trainer = Seq2SeqTrainer(T5ForConditionalGeneration(config), args, train_dataset=data)
    trainer.train()
    assert unwrap(trainer.optimizer).emotion.observations == 4


def test_trls_sft_trainer_trains_a_lora_adapter_with_it(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_word_tokenizer(), pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    args = SFTConfig(
        output_dir=str(tmp_path), optim="emonavi", max_steps=6, logging_steps=1, report_to="none",
        per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="no", max_length=16,
    )  # fmt: skip
    trainer = SFTTrainer(
        LlamaForCausalLM(config),
        args=args,
        train_dataset=Dataset.from_dict({"text": ["a b c d e f"] * 24}),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    lines = tiny.train_lines(trainer)
    assert unwrap(trainer.optimizer).emotion.observations == len(lines) == 6
    assert lines[0]["emo/loss_short"] == lines[0]["loss"]
    assert "emo/effective_lr/lora_b" in lines[-1]


def _word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", "a", "b", "c", "d", "e", "f"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_importing_the_package_imports_nothing_of_hugging_face() -> None:
    heavy = ("transformers", "accelerate", "peft", "datasets", "tensorboard", "matplotlib", "yaml")
    code = f"import sys, emo_hf; emo_hf.EmoNavi; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
