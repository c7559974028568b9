"""An emo optimizer's state: what is saved, what is refused, and what goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import Optimizer

from emo_hf.optim.checkpoint import (
    EMOTION_KEY,
    check_fits,
    check_is_state,
    check_owner,
    find_emotion,
    keeps_nothing,
    pack_emotion,
    with_present_names,
)
from emo_hf.optim.emotion_engine import EmotionEngine
from emo_hf.optim.precision.eight_bits import EIGHT_BITS
from emo_hf.optim.precision.low import restore_dtypes
from emo_hf.optim.precision.saved import kept_as_here
from emo_hf.optim.rule_optimizer import RuleOptimizer
from emo_hf.optim.saved_codes import check_codes
from emo_hf.optim.validation import IMPLEMENTATION_OPTIONS, check_options
from emo_hf.optim.version import Version
from emo_hf.reading import read_value

logger = logging.getLogger(__name__)


class SavingOptimizer(RuleOptimizer):
    """Carries the emotion, and what the rule keeps once per optimizer, in the optimizer's own state."""

    _version: Version
    _engine: EmotionEngine
    _writer: Any
    _steps_written: int

    def _check_options(self, options: Mapping[str, Any]) -> None:
        check_options(options)
        rule = self._version.rule
        for name in IMPLEMENTATION_OPTIONS:
            if options[name] and name not in rule.implementations:
                raise ValueError(f"{type(self).__name__} has no {name} implementation: leave {name}=None")
        if options["state"] == EIGHT_BITS and not rule.eight_bit_state:
            raise ValueError(
                f"state={EIGHT_BITS!r}: {type(self).__name__} {self._version.name} keeps no averages that 8 bits "
                f"would make smaller: leave state out (compensate={EIGHT_BITS!r} is for all optimizers)"
            )
        for name, option in rule.options.items():
            read_value(name, options[name], option.read)

    def _wire(self) -> None:
        if pack_emotion not in self._optimizer_state_dict_post_hooks.values():
            self.register_state_dict_post_hook(pack_emotion, prepend=True)
        self._engine.begin()

    def state_dict(self) -> dict[str, Any]:
        """The state as any torch optimizer's, with the emotion in every parameter group.

        It holds tensors, plain numbers, strings, lists and dicts only: `torch.load(weights_only=True)` reads it. The
        emotion is one, but it lies in each group: a group may be left behind, the emotion may not.
        """
        return super().state_dict()

    def emotion_state(self) -> dict[str, Any]:
        """The emotion as it is saved, with what it belongs to and what the rule keeps once per optimizer."""
        return {
            "optimizer": type(self).__name__,
            "version": self._version.name,
            **self._engine.state_dict(),
            "rule": self._rule.memory(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave, emotion included.

        Raises:
            ValueError: if the state is not of an optimizer of this class and version, or does not fit the parameters.
        """
        loaded: dict[str, Any] = {}  # what the user's hooks make of it

        def look(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            if keeps_nothing(self._rule) and "state" not in given:  # an empty one is lost where torch flattens states
                given = {"state": {}, **given}
            check_is_state(given, type(self).__name__)
            check_codes(given, self._saved_emotion(given), self._rule.eight_bit_state)
            given, change = kept_as_here(given, self.param_groups, self._first_state)
            if change:
                logger.warning("the state was kept in another way when it was saved, and is brought over: %s", change)
            check_fits(self.param_groups, given, self._first_state, self._check_options)
            loaded.update(given)
            return given

        if not isinstance(state_dict, Mapping):  # hooks may make a state of any mapping
            check_is_state(state_dict, type(self).__name__)
        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)  # which ends in __setstate__
        finally:
            handle.remove()
        restore_dtypes(self.state, self.param_groups, loaded)

    def _saved_emotion(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        name = type(self).__name__
        saved = find_emotion(state, name)
        check_owner(saved, name, self._version.name, self._rule.memory())
        self._engine.check(saved)
        return saved

    def __getstate__(self) -> dict[str, Any]:
        own = {"_engine": self._engine, "_rule": self._rule, "_version": self._version, "_writer": None}
        return {**super().__getstate__(), **own, "_steps_written": self._steps_written}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_engine" in state:  # a pickle or a copy
            super().__setstate__(state)
        else:  # from load_state_dict, after its hooks and checks
            saved = self._saved_emotion(state)  # before anything is changed
            newest = {name: self.defaults[name] for name in self.param_groups[0] if name in self.defaults}
            super().__setstate__(state)
            for group in self.param_groups:
                options = {
                    **newest,
                    **with_present_names(group),
                    EMOTION_KEY: None,
                }  # an older state has other options
                group.clear()
                group.update(options)
            self._engine.load_state_dict(saved)
            if saved.get("rule"):
                self._rule.load_memory(saved["rule"])
            self._steps_written = self._engine.law.observations  # a writer's curves go on where they were
        self._wire()
