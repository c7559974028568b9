"""The Trainer of transformers with an emo optimizer: two lines are added, marked with "added".

python scripts/examples/trainer.py

A small untrained BERT learns to tell code from documentation, line by line. Put your own model and data in.
"""

import builtins
import inspect
import subprocess
import tempfile

from transformers import BertConfig, BertForSequenceClassification, ByT5Tokenizer, Trainer, TrainingArguments, set_seed

import emo_hf

set_seed(0)
tokenizer = ByT5Tokenizer(extra_ids=0)  # bytes: the one tokenizer that needs no vocabulary
prose = [line for found in vars(builtins).values() for line in (inspect.getdoc(found) or "").splitlines()]
code = inspect.getsource(subprocess).splitlines()
examples = [
    {**tokenizer(line, truncation=True, max_length=32), "labels": label}
    for label, lines in enumerate((prose, code))
    for line in lines
    if len(line.split()) >= 3
]
config = BertConfig(
    vocab_size=len(tokenizer), num_labels=2, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=32,
)  # fmt: skip
model = BertForSequenceClassification(config)

emo_hf.register()  # added
args = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    optim="emonavi",  # added
    learning_rate=3e-4,
    lr_scheduler_type="constant",
    max_steps=100,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(model, args, train_dataset=examples, processing_class=tokenizer)
trainer.train()

lines = [line for line in trainer.state.log_history if "loss" in line]
first, last = lines[0], lines[-1]
print(f"Trained {model.num_parameters():,} parameters: loss {first['loss']:.3f} → {last['loss']:.3f}")
print(
    f"The emotion felt {last['emo/observations']:.0f} losses: scalar {last['emo/scalar']:+.3f}, "
    f"factor {last['emo/coefficient']:.2f}, learning rate {last['emo/effective_lr']:.2g}"
)
