"""What is changed in other packages: all of it is in one list, is there, and comes only with use."""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from transformers import Trainer

import emo_hf
from emo_hf.integrations import accelerate as loss_tap
from emo_hf.integrations import patches
from emo_hf.integrations.patches import PATCHES, put, take_back
from tests.emo_cases import parameters

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def at(place: str) -> Any:
    """What is at a place now."""
    module, _, path = place.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def test_every_place_is_there_and_methods_are_put_before_others_and_taken_back() -> None:
    for place in PATCHES:
        before = at(place)
        assert before is not None
        if place.startswith(("accelerate:", "torch")):
            for _ in range(2):
                put(place, lambda original: lambda *args: original(*args))
                ours = at(place)
            assert inspect.unwrap(ours) is inspect.unwrap(before)
            assert getattr(ours, patches.OURS) is before
            take_back(place)
            take_back(place)
            assert at(place) is before


def test_registration_puts_methods_before_those_of_transformers_once_and_gives_them_back() -> None:
    emo_hf.unregister()
    places = [place for place in PATCHES if place.startswith("transformers") and callable(at(place))]
    before = {place: at(place) for place in places}
    emo_hf.register()
    ours = {place: at(place) for place in places}
    assert sum(ours[place] is not before[place] for place in places) >= 8
    emo_hf.register()
    assert {place: at(place) for place in places} == ours
    emo_hf.unregister()
    assert {place: at(place) for place in places} == before


def test_a_place_that_has_moved_is_named_once_with_the_remedy_and_the_rest_is_put(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emo_hf.unregister()
    untapped, unsaved = Accelerator.backward, Trainer.save_model
    monkeypatch.setattr(patches, "_missing", set())
    with monkeypatch.context() as patched:
        patched.delattr(Accelerator, "prepare_model")
        patched.delattr(Trainer, "_evaluate")
        for _ in range(2):
            emo_hf.register()
            emo_hf.EmoNavi(parameters())
        assert Accelerator.backward is not untapped
        assert Trainer.save_model is not unsaved
        emo_hf.unregister()
        loss_tap.uninstall()
        assert (Accelerator.backward, Trainer.save_model) == (untapped, unsaved)
    evaluate, prepare = sorted(caplog.messages, key=lambda line: "prepare_model" in line)
    assert "._evaluate is not there in this version" in evaluate
    assert "Remedy: optimizer.hear_evaluation(loss)" in evaluate
    assert "losses are exchanged at the step" in prepare


def test_a_former_copy_of_ours_is_replaced_and_what_others_put_over_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        def method(self) -> list[str]:
            return ["theirs"]

    def adding(name: str) -> Any:
        return lambda original: lambda self: [name, *original(self)]

    monkeypatch.setattr(patches, "_find", lambda place: (Owner, "method"))
    monkeypatch.setattr(patches, "_ours", {})
    put("somewhere", adding("first copy"))
    monkeypatch.setattr(patches, "_ours", {})  # as after a second import of the package
    put("somewhere", adding("second copy"))
    assert Owner().method() == ["second copy", "theirs"]
    Owner.method = functools.wraps(Owner.method)(adding("somebody")(Owner.method))
    monkeypatch.setattr(patches, "_ours", {})
    put("somewhere", adding("third copy"))
    assert Owner().method() == ["third copy", "somebody", "second copy", "theirs"]


def test_nobody_else_in_the_package_changes_a_method_elsewhere() -> None:
    folder = Path(emo_hf.__file__).parent
    texts = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}
    setting = {name for name, text in texts.items() if "setattr(owner" in text or "setattr(Accelerator" in text}
    assert setting <= {"integrations/patches.py", "optim/attachment.py"}  # the latter changes an instance
