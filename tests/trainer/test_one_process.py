"""A process from its beginning: torch alone, accelerate, transformers, then a cell of a notebook again and again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import atexit, json, sys
import torch
import emo_hf
from emo_hf.trainer.param_groups import build_param_groups, has_adapters

facts = {}
model = torch.nn.Linear(2, 1)
optimizer = emo_hf.EmoNavi(model.parameters())
optimizer.observe(1.0)
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
groups = build_param_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)), lr=0.1)
facts["groups"] = [(group["name"], len(group["params"])) for group in groups]
heavy = ("transformers", "accelerate", "peft", "datasets", "tensorboard", "matplotlib", "yaml")
facts["loaded"] = [name for name in heavy if name in sys.modules]

from accelerate import Accelerator
before = dict(vars(Accelerator)), list(sys.meta_path), atexit._ncallbacks()
import emo_hf.integrations.accelerate, emo_hf.integrations.backward
unchanged = [before == (dict(vars(Accelerator)), list(sys.meta_path), atexit._ncallbacks())]
accelerator = Accelerator(cpu=True)
model, prepared = accelerator.prepare(model, optimizer)
accelerator.backward(model(torch.ones(1, 2)).sum() * 0.0 + 2.0)
prepared.step()
facts["felt"] = optimizer.emotion.short

from transformers import trainer, trainer_optimizer
from accelerate.state import AcceleratorState, GradientState
lists = trainer.DEFAULT_CALLBACKS, trainer_optimizer._OPTIMIZER_HANDLERS, vars(trainer.Trainer), sys.meta_path
before = [list(each) for each in lists], list(vars(trainer.Trainer).values())
import emo_hf.trainer.registry
unchanged.append(before == ([list(each) for each in lists], list(vars(trainer.Trainer).values())))
facts["unchanged"] = unchanged

def cell():
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    import emo_hf
    emo_hf.register()
    from tests import tiny
    felt = tiny.Felt()
    trainer = tiny.trainer("out", optim="emofact", max_steps=2, gradient_accumulation_steps=2, callbacks=[felt])
    trainer.train()
    lines = tiny.train_lines(trainer)
    return [felt.losses == [line["loss"] for line in lines], [line["emo/observations"] for line in lines]]

facts["cells"] = [cell(), cell()]
for name in [name for name in sys.modules if name == "emo_hf" or name.startswith(("emo_hf.", "tests"))]:
    del sys.modules[name]  # what a reload of the whole package comes to
facts["cells"].append(cell())
facts["callbacks"] = [each.__name__ for each in trainer.DEFAULT_CALLBACKS if "emo" in each.__module__]
import emo_hf
emo_hf.unregister()
emo_hf.register()
facts["cells"].append(cell())
print(json.dumps(facts))
"""


def test_a_process_from_torch_alone_to_a_cell_that_is_run_again_and_a_package_that_is_imported_anew(
    tmp_path: Path,
) -> None:
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r})\n{PROCESS}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["loaded"] == [], "the core and groups of plain models import nothing of Hugging Face"
    assert facts["groups"] == [["decay", 1], ["no_decay", 3]]
    assert facts["unchanged"] == [True, True], "importing the package changes nothing anywhere"
    assert facts["felt"] == pytest.approx(0.3 * 2.0 + 0.7 * 1.0), "an optimizer from before accelerate is wired"
    assert facts["cells"] == [[True, [1, 2]]] * 4
    assert facts["callbacks"] == ["EmoCallback"]
