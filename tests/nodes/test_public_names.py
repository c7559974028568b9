"""What users of autonomous ranks and nodes need has no module path: it is imported from `emo_hf`."""

from __future__ import annotations

import pytest

import emo_hf

NAMES = ["LocalSGDCallback", "WeightExchange", "WeightExchangeCallback", "average_saved", "last_whole_checkpoint"]


@pytest.mark.parametrize("name", sorted({*NAMES, *emo_hf._LAZY}))
def test_a_public_name_is_imported_from_the_package_and_listed_there(name: str) -> None:
    space: dict[str, object] = {}
    exec(f"from emo_hf import {name}", space)  # as users write it
    assert getattr(space[name], "__name__", name) == name  # the table of the family has none
    assert name in emo_hf.__all__
    assert name in dir(emo_hf)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'emo_hf' has no attribute 'LocalSGDCalback'"):
        emo_hf.LocalSGDCalback  # noqa: B018
