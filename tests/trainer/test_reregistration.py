"""register() survives a second import, a reload, and the same cell of a notebook run again."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import transformers.trainer
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import emo_hf
from emo_hf.integrations import accelerate as loss_tap
from emo_hf.integrations import patches
from emo_hf.trainer import registry
from tests import tiny


def assert_registered_once() -> None:
    ours = [c.__name__ for c in transformers.trainer.DEFAULT_CALLBACKS if c.__module__.startswith("emo_hf.")]
    assert ours == ["EmoCallback"]
    assert [member.value for member in OptimizerNames].count("emonavi") == 1
    assert registry.is_registered()


def test_the_registry_may_be_reloaded_before_and_after_registering(tmp_path: Path) -> None:
    emo_hf.register()
    importlib.reload(registry)
    emo_hf.register()
    assert_registered_once()
    trainer = tiny.trainer(tmp_path, max_steps=3)
    trainer.train()
    assert [line["emo/observations"] for line in tiny.train_lines(trainer)] == [1, 2, 3]
    importlib.reload(registry)
    emo_hf.unregister()
    assert not {member.value for member in OptimizerNames} & emo_hf.FAMILY.keys()
    assert not [c for c in transformers.trainer.DEFAULT_CALLBACKS if c.__module__.startswith("emo_hf.")]


def test_a_reloaded_tap_shows_each_loss_once_and_still_comes_off() -> None:
    loss_tap.uninstall()
    untapped = Accelerator.backward
    loss_tap.install()
    importlib.reload(loss_tap)
    importlib.reload(loss_tap)
    loss_tap.install()
    assert getattr(Accelerator.backward, patches.OURS) is untapped
    loss_tap.uninstall()
    assert Accelerator.backward is untapped
    loss_tap._switched_off = False


CELL = """
import emo_hf
emo_hf.register()
from transformers import TrainingArguments
from tests import tiny
args = TrainingArguments(output_dir="out", optim="emofact")
felt = tiny.Felt()
trainer = tiny.trainer("out", optim="emofact", max_steps=4, gradient_accumulation_steps=2, callbacks=[felt])
trainer.train()
lines = tiny.train_lines(trainer)
assert felt.losses == [line["loss"] for line in lines], (felt.losses, lines)
assert [line["emo/observations"] for line in lines] == [1, 2, 3, 4]
print("felt", type(trainer.optimizer.optimizer).__module__)
"""

NOTEBOOK = """
import sys
cell = {cell!r}
for run in range(3):
    exec(cell, {{}})
    if run == 1:  # what a reload of the whole package comes to
        for name in [name for name in sys.modules if name == "emo_hf" or name.startswith(("emo_hf.", "tests"))]:
            del sys.modules[name]
import emo_hf, transformers.trainer
print([callback.__name__ for callback in transformers.trainer.DEFAULT_CALLBACKS if "emo" in callback.__module__])
emo_hf.unregister()
emo_hf.register()
exec(cell, {{}})
"""


def test_a_cell_may_be_run_again_and_the_package_imported_anew_in_one_process(tmp_path: Path) -> None:
    code = textwrap.dedent(NOTEBOOK.format(cell=CELL))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("felt ") == 4
    assert "['EmoCallback']" in done.stdout


def test_the_whole_package_may_be_reloaded() -> None:
    emo_hf.register()
    importlib.reload(emo_hf)
    emo_hf.register()
    assert_registered_once()
    assert TrainingArguments(output_dir="out", optim="emonavi").optim.value == "emonavi"
