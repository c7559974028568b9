"""The names of the family in transformers' list of optimizers; imports nothing of transformers."""

from __future__ import annotations

from typing import Any

from emo_hf.optim.family import family_names


def extend_names(names: Any) -> None:
    """Make the names of the family members of `OptimizerNames`; doing it twice changes nothing.

    Raises:
        ImportError: if aenum is not installed.
    """
    from aenum import extend_enum

    for name in family_names():
        if name not in names._value2member_map_:
            extend_enum(names, name.upper(), name)


def take_back_names(names: Any) -> None:
    """Take the names of the family out of `OptimizerNames`."""
    for name in family_names():
        member = names._value2member_map_.pop(name, None)
        if member is not None:
            del names._member_map_[member.name]
            names._member_names_.remove(member.name)
            if member.name in vars(names):
                type.__delattr__(names, member.name)
