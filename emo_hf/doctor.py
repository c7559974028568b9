"""`emo-hf doctor`: what is installed, and whether the loss reaches the optimizers in it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable

import torch

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "tensorboard", "aenum", "matplotlib", "trl")


def main(argv: list[str] | None = None) -> int:
    """Print versions and the outcome of each check.

    Args:
        argv: nothing is accepted but --help.

    Returns:
        0 if every check passed, 1 otherwise, 2 for arguments that cannot be used.
    """
    if argv:
        helps = argv in (["-h"], ["--help"])
        print("usage: emo-hf doctor", file=sys.stdout if helps else sys.stderr)
        return 0 if helps else 2
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("emo_hf", *PACKAGES):
        print(f"{package:13} {_version(package)}")
    print(f"devices       cpu ({torch.get_num_threads()} threads){_accelerators()}")
    passed = [_report(name, check) for name, check in CHECKS.items()]
    return 0 if all(passed) else 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "".join(f", {torch.cuda.get_device_name(index)}" for index in range(count))


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok      {name}: {check()}")
    except Exception as error:  # noqa: BLE001  whatever is broken, the user shall read it and see the other checks
        print(f"FAILED  {name}: {type(error).__name__}: {error}")
        return False
    return True


def _core() -> str:
    from emo_hf import EmoNavi

    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = EmoNavi([weight], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss = weight.square().sum()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
    emotion = optimizer.emotion
    if emotion.observations != 50 or not emotion.scalar > 0:
        raise RuntimeError(f"50 losses were shown, and the emotion is {emotion}")
    return f"50 steps, loss {loss.item():.3g}, coefficient {emotion.coefficient:.3f}"


def _registration() -> str:
    from transformers import HfArgumentParser, TrainingArguments

    from emo_hf.optim.family import FAMILY
    from emo_hf.trainer.registry import register

    register()
    for name in FAMILY:
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--output_dir", "unused", "--optim", name])
    return "--optim " + "|".join(FAMILY)


def _trainer() -> str:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from emo_hf.integrations.accelerate import unwrap
    from emo_hf.trainer.registry import register

    register()
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    examples = [{"input_ids": [index % 32] * 4, "labels": index % 2} for index in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, optim="emonavi", max_steps=8, logging_steps=1, per_device_train_batch_size=4,
            gradient_accumulation_steps=2, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=examples)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    emo = unwrap(trainer.optimizer)
    if emo is None or emo.emotion.observations != 8:
        raise RuntimeError(f"8 steps were made, and the emotion saw {emo and emo.emotion.observations}")
    logged = [line for line in trainer.state.log_history if "emo/effective_lr" in line]
    if len(logged) != 8:
        raise RuntimeError(f"8 steps were logged, {len(logged)} with metrics")
    return "8 Trainer steps with accumulation, 8 losses seen, 8 log lines with metrics"


CHECKS: dict[str, Callable[[], str]] = {"optimizer": _core, "registration": _registration, "trainer": _trainer}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
