"""LoRA on a causal language model, with PEFT and the Trainer; B learns at 16 times the rate of A (LoRA+).

python scripts/examples/lora.py

The base model is an untrained Llama, so that nothing is downloaded: put `AutoModelForCausalLM.from_pretrained` in its
place, and your own text in place of the source of `subprocess`.
"""

import inspect
import subprocess
import tempfile

from peft import LoraConfig, get_peft_model
from transformers import (
    ByT5Tokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

import emo_hf

LENGTH = 64

set_seed(0)
tokenizer = ByT5Tokenizer(extra_ids=0)
tokens = tokenizer(inspect.getsource(subprocess))["input_ids"]
pieces = [{"input_ids": tokens[start : start + LENGTH]} for start in range(0, len(tokens) - LENGTH, LENGTH)]

config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)
adapter = LoraConfig(
    r=8, lora_alpha=16, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"
)
model = get_peft_model(LlamaForCausalLM(config), adapter)

emo_hf.register()
args = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    optim="emonavi",
    optim_args="lora_b_lr_ratio=16",
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    max_steps=100,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
)
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
trainer = Trainer(model, args, train_dataset=pieces, data_collator=collator)
trainer.train()

lines = [line for line in trainer.state.log_history if "loss" in line]
trained, total = model.get_nb_trainable_parameters()
print(f"Trained {trained:,} of {total:,} parameters: loss {lines[0]['loss']:.3f} → {lines[-1]['loss']:.3f}")
rates = {name: f"{value:.2g}" for name, value in lines[-1].items() if name.startswith("emo/effective_lr/")}
print(f"The emotion felt {lines[-1]['emo/observations']:.0f} losses: scalar {lines[-1]['emo/scalar']:+.3f}, {rates}")
