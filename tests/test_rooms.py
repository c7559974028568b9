"""The rooms of the package: who may import whom, and what `import emo_hf` may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import emo_hf
from tests.arrows import Arrow, Arrows, circles, imports_of, names_of, upward

PACKAGE = Path(__file__).parent.parent / "emo_hf"

FLOORS = (
    ("emo_hf.reading", "emo_hf.cli_errors"),
    ("emo_hf.laws", "emo_hf.losses"),
    ("emo_hf.optim", "emo_hf.plot"),
    ("emo_hf.integrations",),
    ("emo_hf.nodes", "emo_hf.trainer"),
    ("emo_hf",),  # the names that users import
    ("emo_hf.startup",),
    ("emo_hf.run",),
    ("emo_hf.train", "emo_hf.doctor"),
    ("emo_hf.study",),
    ("emo_hf.cli",),
    ("emo_hf.__main__",),
)
"""The rooms, the lowest first; those on one floor do not know each other."""

UPWARD: set[Arrow] = {
    ("emo_hf.integrations.axolotl", "emo_hf.trainer.registry"),  # homes that have the Trainer inside
    ("emo_hf.integrations.lightning", "emo_hf.trainer.self_stop"),
    ("emo_hf.integrations.ms_swift.plugin.emo_hf_for_ms_swift", "emo_hf.trainer.registry"),
    ("emo_hf.optim.engine", "emo_hf.integrations.accelerate"),
}
"""The arrows that still lead up, until somebody turns them."""

CIRCLES = {
    frozenset(  # the engine names the loss tap, which it wires where accelerate is imported
        {
            "emo_hf.integrations.accelerate",
            "emo_hf.integrations.deepspeed",
            "emo_hf.optim.attachment",
            "emo_hf.optim.engine",
            "emo_hf.optim.has_emotion",
            "emo_hf.optim.optimizer",
        }
    ),
}
"""The circles that there still are: each has one lazy import."""

WITHOUT = {
    "laws": {"torch", "numpy", "transformers", "accelerate"},
    "losses": {"transformers", "accelerate", "peft", "datasets"},
    "optim": {"transformers", "accelerate", "peft", "datasets"},
}
"""What a room never imports, not even when it is used."""

OF_OTHERS = {"shlex"}
"""What the optimizers may load beside modules of this package and whatever torch has loaded before."""

MODULES, DATACLASSES = 83, 19
"""How many modules of the package they may load, and how many dataclasses these may make, which take as long."""

LOADED = """
import json, sys
{first}
before = set(sys.modules)
{then}
loaded = [name for name in sys.modules if name not in before]
classes = {{value for name in loaded for value in vars(sys.modules[name]).values() if isinstance(value, type)}}
made = [cls.__qualname__ for cls in classes if cls.__module__ in loaded and "__dataclass_fields__" in vars(cls)]
json.dump([loaded, made], sys.stdout)
"""


@pytest.fixture(scope="module")
def arrows() -> Arrows:
    return imports_of(PACKAGE)


def test_every_arrow_between_rooms_leads_down_but_for_those_that_are_known(arrows: Arrows) -> None:
    found = upward(arrows, FLOORS)
    assert not found - UPWARD, "these modules import what lies on their own floor or a higher one"
    assert not UPWARD - found, "these arrows are gone: strike them off the list"
    assert upward({"emo_hf.laws.one": {"emo_hf.losses.other"}}, FLOORS), "nor to another room on the same floor"


def test_no_modules_import_each_other_in_a_circle_but_those_that_are_known(arrows: Arrows) -> None:
    assert circles(arrows) == CIRCLES


@pytest.mark.parametrize("name", WITHOUT)
def test_a_low_room_knows_nothing_of_what_is_built_upon_it(name: str) -> None:
    for file in (PACKAGE / name).rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        imported = {each.partition(".")[0] for node in nodes for each in names_of(node)}
        assert not imported & WITHOUT[name], file


def loaded(first: str, then: str) -> tuple[list[str], list[str]]:
    """The modules that a fresh process loads with one statement after another, and the dataclasses that these make."""
    command = [sys.executable, "-c", LOADED.format(first=first, then=then)]
    modules, made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    return modules, made


def test_importing_the_package_loads_nothing_else_and_the_optimizers_little_beside_torch() -> None:
    assert loaded("import importlib, typing, __future__", "import emo_hf") == (["emo_hf"], [])
    modules, made = loaded("import torch", "from emo_hf import EmoNavi, attach")
    own = [name for name in modules if name.partition(".")[0] == "emo_hf"]
    assert set(modules) - set(own) <= OF_OTHERS
    assert len(own) <= MODULES, own
    assert len(made) <= DATACLASSES, made


def test_every_public_name_is_listed_and_can_be_imported_and_others_are_refused_as_usual() -> None:
    assert len(emo_hf.__all__) == len(set(emo_hf.__all__))
    assert {cls.__name__ for cls in emo_hf.FAMILY.values()} <= set(emo_hf.__all__)
    for name in emo_hf.__all__:
        assert getattr(emo_hf, name) is not None
        assert name in dir(emo_hf)
    with pytest.raises(AttributeError, match="module 'emo_hf' has no attribute 'EmoNever'"):
        _ = emo_hf.EmoNever
    assert not hasattr(emo_hf, "__wrapped__")
    everything: dict[str, object] = {}
    exec("from emo_hf import *", everything)
    assert everything.keys() >= set(emo_hf.__all__)
