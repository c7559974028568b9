"""The plugins for Axolotl and ms-swift, by the calls that their sources make: neither is installed here.

Axolotl: `load_plugin`, `prepare_plugins` and `merge_input_args` in `axolotl/integrations` and `axolotl/cli/config.py`.
ms-swift: `import_external_file` in `swift/utils/utils.py`, called by `BaseArguments.__post_init__`, and
`OptimizerCallback` in `swift/optimizers`. What they call of transformers and pydantic is the real one.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.ms_swift import PLUGIN
from tests import tiny

pytestmark = pytest.mark.long

PLUGIN_NAME = "emo_hf.integrations.axolotl.EmoPlugin"


class BasePlugin:
    """Of Axolotl's, what is called here."""

    def register(self, cfg: Any) -> None: ...

    def get_input_args(self) -> str | None: ...


class Custom(str, Enum):
    MUON = "muon"


class InputConfig(BaseModel):
    """Axolotl's annotation of `optimizer`, built before anything is registered."""

    optimizer: (OptimizerNames | Custom) | None = OptimizerNames.ADAMW_TORCH_FUSED


@pytest.fixture(autouse=True)
def axolotl(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "emo_hf.integrations.axolotl", raising=False)
    emo_hf.unregister()  # what another test of this process may have left registered
    yield
    emo_hf.unregister()


def load_cfg(cfg: dict[str, Any]) -> BaseModel:
    """Loads the plugin, has it register, merges what it adds into the configuration, checks the latter."""
    module_name, class_name = PLUGIN_NAME.rsplit(".", 1)
    plugin = getattr(importlib.import_module(module_name), class_name)()
    plugin.register(cfg)
    args_module, args_class = plugin.get_input_args().rsplit(".", 1)
    merged = type("InputConfig", (InputConfig, getattr(importlib.import_module(args_module), args_class)), {})
    checked: BaseModel = merged(**{key: value for key, value in cfg.items() if key != "plugins"})
    return checked


def test_an_axolotl_job_may_name_an_emo_optimizer_and_trains_with_it(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        InputConfig(optimizer="emonavi")  # type: ignore[arg-type]
    cfg: Any = load_cfg({"plugins": [PLUGIN_NAME], "optimizer": "emonavi"})
    trainer = tiny.trainer(tmp_path, optim=cfg.optimizer, max_steps=2)
    trainer.train()
    assert unwrap(trainer.optimizer).emotion.observations == 2


def test_an_axolotl_job_may_ask_for_an_emotion_beside_its_optimizer(tmp_path: Path) -> None:
    cfg: Any = load_cfg({"plugins": [PLUGIN_NAME], "emo_emotion": "v3.1"})
    trainer = tiny.trainer(tmp_path, optim=cfg.optimizer, max_steps=2)
    trainer.train()
    assert "emo/coefficient" in tiny.train_lines(trainer)[-1]
    assert not isinstance(unwrap(trainer.optimizer), emo_hf.EmoOptimizer)


def test_a_law_that_there_is_not_is_refused_by_the_axolotl_plugin() -> None:
    with pytest.raises(ValidationError, match=r"emo_emotion: 'v9' is none of the laws; it takes one of v3\.0, v3\.1"):
        load_cfg({"plugins": [PLUGIN_NAME], "emo_emotion": "v9"})


SWIFT = f"""
import importlib, os, sys
from types import ModuleType
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

class OptimizerCallback:  # what is called of it, and what it calls
    def __init__(self, args, trainer):
        self.args, self.trainer = args, trainer

    def create_optimizer(self, model=None):
        return Trainer.create_optimizer(self.trainer, **({{}} if model is None else {{"model": model}}))

optimizers = ModuleType("swift.optimizers")
optimizers.OptimizerCallback, optimizers.optimizers_map = OptimizerCallback, {{"default": OptimizerCallback}}
sys.modules |= {{"swift": ModuleType("swift"), "swift.optimizers": optimizers}}

folder, file = os.path.split(os.path.abspath({PLUGIN!r}))
sys.path.insert(0, folder)
importlib.import_module(file.split(".", 1)[0])

from tests import tiny

class SwiftTrainer(Trainer):
    def create_optimizer(self, model=None):
        self.optimizer = optimizers.optimizers_map["emofact"](self.args, self).create_optimizer(model)
        return self.optimizer

args = tiny.arguments("out", optim="adamw_torch", max_steps=2)
trainer = SwiftTrainer(tiny.classifier(), args, train_dataset=tiny.examples())
trainer.train()
print(args.optim.value, [line["emo/observations"] for line in tiny.train_lines(trainer)])
print(os.listdir(folder))
"""


def test_ms_swift_makes_an_emo_optimizer_once_it_has_imported_the_plugin_file(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{textwrap.dedent(SWIFT)}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, made, beside = done.stdout.splitlines()
    assert made == "emofact [1, 2]"
    # Its folder comes first on the path: whatever else lay there could be taken for a package of that name.
    assert {name for name in eval(beside) if name != "__pycache__"} == {Path(PLUGIN).name}


def test_nothing_is_registered_by_merely_naming_the_plugins(tmp_path: Path) -> None:
    importlib.import_module("emo_hf.integrations.axolotl")
    with pytest.raises(ValueError, match="emonavi"):
        TrainingArguments(output_dir=str(tmp_path), optim="emonavi")
