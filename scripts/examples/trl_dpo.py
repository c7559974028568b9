"""Preferences with TRL's DPO: sentences in their own order are preferred to the same words backwards.

python scripts/examples/trl_dpo.py

The policy is an untrained Llama with a LoRA adapter, so that nothing is downloaded; without the adapter it is the
reference. DPO's loss begins at log 2 and can come near 0, where `robust` judges it by its usual size.
"""

import builtins
import inspect
import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, set_seed
from trl import DPOConfig, DPOTrainer

import emo_hf

set_seed(0)
tokenizer = ByT5Tokenizer(extra_ids=0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
)  # fmt: skip
sentences = {name: inspect.getdoc(found).splitlines()[0] for name, found in vars(builtins).items() if found.__doc__}
pairs = [
    {"prompt": f"{name}: ", "chosen": said, "rejected": " ".join(reversed(said.split()))}
    for name, said in sentences.items()
    if len(said.split()) > 3
]

emo_hf.register()
args = DPOConfig(
    output_dir=tempfile.mkdtemp(),
    optim="emonavi",
    optim_args="emo_law=robust",
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    max_length=64,
    bf16=False,  # TRL's default is True, which needs a GPU
    gradient_checkpointing=False,
    max_steps=40,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
)
trainer = DPOTrainer(
    LlamaForCausalLM(config), args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
)  # fmt: skip
trainer.train()

lines = [line for line in trainer.state.log_history if "loss" in line]
trained, total = trainer.model.get_nb_trainable_parameters()
print(f"Trained {trained:,} of {total:,} parameters: loss {lines[0]['loss']:.3f} → {lines[-1]['loss']:.3f}")
print(f"The preferred sentence was likelier in {lines[-1]['rewards/accuracies']:.0%} of the last pairs")
print(f"The emotion felt {lines[-1]['emo/observations']:.0f} losses: scalar {lines[-1]['emo/scalar']:+.3f}")
