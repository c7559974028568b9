"""What is changed in other packages: all of it is in one list, is there, and comes only with use."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import emo_hf
from emo_hf.integrations import accelerate as loss_tap
from emo_hf.integrations import patches
from emo_hf.integrations.patches import PATCHES, put, take_back
from tests.emo_cases import parameters


@pytest.fixture(autouse=True)
def untapped() -> Iterator[None]:
    loss_tap.uninstall()
    loss_tap._switched_off = False  # as it is in a process of its own
    yield
    loss_tap.uninstall()
    loss_tap._switched_off = False


METHODS = [place for place in PATCHES if place.startswith(("accelerate:", "torch"))]


@pytest.mark.parametrize("place", PATCHES)
def test_every_place_is_there_in_the_versions_that_are_tested(place: str) -> None:
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert found is not None


@pytest.mark.parametrize("place", METHODS)
def test_a_method_is_put_before_another_and_taken_back(place: str) -> None:
    module, _, path = place.partition(":")
    owner: Any = getattr(importlib.import_module(module), path.split(".")[0])
    name = path.split(".")[1]
    before = getattr(owner, name)
    put(place, lambda original: lambda *args: original(*args))
    ours = getattr(owner, name)
    put(place, lambda original: lambda *args: original(*args))
    assert getattr(owner, name) is ours is not before
    assert inspect.unwrap(ours) is inspect.unwrap(before)
    take_back(place)
    take_back(place)
    assert getattr(owner, name) is before


def test_a_place_that_has_moved_is_named_with_the_remedy_and_the_rest_is_put(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, logger="emo_hf"):
        patched.delattr(Accelerator, "prepare_model")
        untapped = Accelerator.backward
        emo_hf.EmoNavi(parameters())
        assert Accelerator.backward is not untapped
        loss_tap.uninstall()
        assert Accelerator.backward is untapped
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.startswith("accelerate:Accelerator.prepare_model is not there in this version")
    assert "losses are exchanged at the step" in said


def test_a_former_copy_of_ours_is_replaced_and_what_others_put_over_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        def method(self) -> list[str]:
            return ["theirs"]

    def adding(name: str) -> Any:
        return lambda original: lambda self: [name, *original(self)]

    monkeypatch.setattr(patches, "_find", lambda place: (Owner, "method"))
    monkeypatch.setattr(patches, "_before", {})
    put("somewhere", adding("first copy"))
    monkeypatch.setattr(patches, "_before", {})  # as after a second import of the package
    put("somewhere", adding("second copy"))
    assert Owner().method() == ["second copy", "theirs"]
    Owner.method = functools.wraps(Owner.method)(adding("somebody")(Owner.method))
    monkeypatch.setattr(patches, "_before", {})
    put("somewhere", adding("third copy"))
    assert Owner().method() == ["third copy", "somebody", "second copy", "theirs"]


def test_importing_the_package_changes_nothing_anywhere() -> None:
    code = """
        import atexit, importlib, sys
        import accelerate, transformers.trainer, transformers.trainer_optimizer
        before = list(sys.meta_path), atexit._ncallbacks(), dict(vars(accelerate.Accelerator))
        lists = transformers.trainer.DEFAULT_CALLBACKS, transformers.trainer_optimizer._OPTIMIZER_HANDLERS
        was = [list(each) for each in lists]
        import emo_hf, emo_hf.integrations.accelerate, emo_hf.integrations.backward, emo_hf.trainer.registry
        assert before == (list(sys.meta_path), atexit._ncallbacks(), dict(vars(accelerate.Accelerator)))
        assert was == [list(each) for each in lists]
        print("nothing")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("nothing", 0), done.stderr


def test_every_change_of_a_method_elsewhere_is_in_the_list() -> None:
    """Nobody else in the package sets an attribute of another package's class."""
    folder = Path(emo_hf.__file__).parent
    allowed = {"integrations/patches.py", "optim/overlay.py", "doctor/watch.py"}  # an instance's, a process of its own
    setting = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        if "setattr(owner" in file.read_text(encoding="utf-8") or "setattr(Accelerator" in file.read_text()
    }
    assert setting <= allowed
