"""Supervised fine-tuning with TRL: an optimizer's name is all that changes.

python scripts/examples/trl_sft.py

A small untrained Llama learns to write documentation for a function's name. TRL's own scripts take the same option:
`emo-hf run -m trl.scripts.sft --optim emolynx …`
"""

import builtins
import inspect
import tempfile

from datasets import Dataset
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

import emo_hf

set_seed(0)
tokenizer = ByT5Tokenizer(extra_ids=0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
)  # fmt: skip
examples = [
    {"prompt": f"{name}: ", "completion": inspect.getdoc(found)}
    for name, found in vars(builtins).items()
    if inspect.getdoc(found)
]

emo_hf.register()
args = SFTConfig(
    output_dir=tempfile.mkdtemp(),
    optim="emolynx",
    learning_rate=3e-4,  # EmoLynx steps by a sign: a third to a tenth of AdamW's rate
    lr_scheduler_type="constant",
    max_length=64,
    bf16=False,  # TRL's default is True, which needs a GPU
    gradient_checkpointing=False,
    max_steps=80,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
)
trainer = SFTTrainer(
    LlamaForCausalLM(config), args, train_dataset=Dataset.from_list(examples), processing_class=tokenizer
)
trainer.train()

lines = [line for line in trainer.state.log_history if "loss" in line]
first, last = lines[0], lines[-1]
print(f"Trained {trainer.model.num_parameters():,} parameters: loss {first['loss']:.3f} → {last['loss']:.3f}")
print(
    f"The emotion felt {last['emo/observations']:.0f} losses: scalar {last['emo/scalar']:+.3f}, "
    f"factor {last['emo/coefficient']:.2f}"
)
