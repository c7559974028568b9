"""The plugins for Axolotl and ms-swift, by the calls that their sources make: neither is installed here.

Axolotl: `load_plugin`, `prepare_plugins` and `merge_input_args` in `axolotl/integrations` and `axolotl/cli/config.py`.
ms-swift: `import_external_file` in `swift/utils/utils.py`, called by `BaseArguments.__post_init__`, and
`OptimizerCallback` in `swift/optimizers`. What they call of transformers and pydantic is the real one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.ms_swift import PLUGIN
from tests import tiny

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


@pytest.mark.parametrize(("named", "own"), [({"optimizer": "emonavi"}, True), ({"emo_emotion": "v3.1"}, False)])
def test_an_axolotl_job_may_name_an_emo_optimizer_or_an_emotion_beside_its_own(
    named: dict[str, str], own: bool, tmp_path: Path
) -> None:
    if own:
        with pytest.raises(ValidationError):
            InputConfig(**named)  # type: ignore[arg-type]
        importlib.import_module("emo_hf.integrations.axolotl")  # which registers nothing
        with pytest.raises(ValueError, match="emonavi"):
            TrainingArguments(output_dir=str(tmp_path), optim="emonavi")
    cfg: Any = load_cfg({"plugins": [PLUGIN_NAME], **named})
    trainer = tiny.trainer(tmp_path, optim=cfg.optimizer, max_steps=2)
    trainer.train()
    assert tiny.train_lines(trainer)[-1]["emo/observations"] == 2
    assert isinstance(unwrap(trainer.optimizer), emo_hf.EmoOptimizer) is own


def test_a_law_that_there_is_not_is_refused_by_the_axolotl_plugin() -> None:
    with pytest.raises(ValueError, match=r"emo_law must be one of v3\.0, v3\.1.* got 'v9'"):
        load_cfg({"plugins": [PLUGIN_NAME], "emo_emotion": "v9"})


class SwiftTrainer(Trainer):
    """ms-swift's, which looks `--optimizer` up in its table when the plugin has been imported."""

    def create_optimizer(self, model: Any = None) -> Any:
        made = sys.modules["swift.optimizers"].optimizers_map["emofact"](self.args, self)
        self.optimizer = made.create_optimizer(model)
        return self.optimizer


class OptimizerCallback:
    """Of ms-swift's, what is called, and what it calls."""

    def __init__(self, args: Any, trainer: Any) -> None:
        self.args, self.trainer = args, trainer

    def create_optimizer(self, model: Any = None) -> Any:
        return Trainer.create_optimizer(self.trainer, **({} if model is None else {"model": model}))


def test_ms_swift_makes_an_emo_optimizer_once_it_has_imported_the_plugin_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers = ModuleType("swift.optimizers")
    optimizers.OptimizerCallback = OptimizerCallback  # type: ignore[attr-defined]
    optimizers.optimizers_map = {"default": OptimizerCallback}  # type: ignore[attr-defined]
    folder, file = Path(PLUGIN).parent, Path(PLUGIN)
    monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.optimizers", optimizers)
    monkeypatch.syspath_prepend(folder)  # as ms-swift does
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    importlib.import_module(file.stem)
    args = tiny.arguments(tmp_path, optim="adamw_torch", max_steps=2)
    trainer = SwiftTrainer(tiny.classifier(), args, train_dataset=tiny.examples())
    trainer.train()
    assert args.optim.value == "emofact"
    assert [line["emo/observations"] for line in tiny.train_lines(trainer)] == [1, 2]
    # Its folder comes first on the path: whatever else lay there could be taken for a package of that name.
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {file.name}
