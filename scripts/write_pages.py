"""Writes the tables of docs/ that follow from the code: the options, the family, the learning rates to begin with.

    python scripts/write_pages.py

Each stands in its page between `<!-- generated: NAME -->` and `<!-- /generated -->`. The tests say when one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from measuring import table

from emo_hf.laws import LAWS
from emo_hf.optim.family import FAMILY
from emo_hf.optim.family_table import family_table
from emo_hf.reading import Option
from emo_hf.train.rates import SCALE, STARTING_RATES
from emo_hf.trainer.options import CALLBACK_OPTIONS, GROUP_OPTIONS, optimizer_options
from emo_hf.trainer.param_groups import ROLES

DOCS = Path(__file__).parent.parent / "docs"


def accepted(option: Option) -> str:
    """What an option takes, in the words in which it refuses anything else."""
    try:
        option.read(object())
    except ValueError as refusal:
        return str(refusal).removeprefix("one of ").replace("|", "\\|")
    raise TypeError(f"{option} takes anything")


def default(option: Option) -> str:
    """A default as it is written in `optim_args`."""
    value = option.default
    if value is None:
        return ""
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def options() -> str:
    """All options, by who has them."""
    of_optimizers, whose = optimizer_options(), owners()
    everybody = {name: option for name, option in of_optimizers.items() if name not in whose}
    some = [[f"`{name}`", owner, *described(name, of_optimizers[name])] for name, owner in whose.items()]
    head = ["takes", "default", "what it does"]
    parts = {
        "All optimizers of the family": table(["option", *head], rows_of(everybody)),
        "Single laws and optimizers": table(["option", "of", *head], some),
        "In a Trainer": table(["option", *head], rows_of(CALLBACK_OPTIONS)),
        "Of parameter groups": of_groups(),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def rows_of(known: Mapping[str, Option]) -> list[list[str]]:
    return [[f"`{name}`", *described(name, option)] for name, option in known.items()]


def described(name: str, option: Option) -> list[str]:
    """What an option takes, its default, and what it does."""
    others = {
        f"{value} in {cls.__name__}"
        for cls in FAMILY.values()
        for version in cls.versions.values()
        for value in [version.law_options.get(name, option.default)]
        if value != option.default
    }
    return [accepted(option), ", ".join([default(option), *sorted(others)]), option.help]


def owners() -> dict[str, str]:
    """Options of laws and rules, and which laws or optimizers have them."""
    found: dict[str, list[str]] = {}
    for name, law in LAWS.items():
        for option in law.options:
            found.setdefault(option, []).append(f"law {name}")
    for cls in FAMILY.values():
        for option in {name: None for version in cls.versions.values() for name in version.rule.options}:
            have = [version.name for version in cls.versions.values() if option in version.rule.options]
            which = "" if len(have) == len(cls.versions) else " " + ", ".join(have)
            found.setdefault(option, []).append(f"{cls.__name__}{which}")
    return {option: ", ".join(have) for option, have in found.items()}


def of_groups() -> str:
    """The options of parameter groups, once for all roles."""
    begin = f"{ROLES[0]}_"
    kinds = {name.removeprefix(begin): option for name, option in GROUP_OPTIONS.items() if name.startswith(begin)}
    rows = [[f"`<role>_{kind}`", accepted(option), GROUP_WORDS[kind]] for kind, option in kinds.items()]
    roles = ", ".join(f"`{role}`" for role in ROLES)
    return f"{table(['option', 'takes', 'what it is'], rows)}\n\nThe roles are {roles}."


GROUP_WORDS = {
    "lr": "learning rate of a role",
    "lr_ratio": "the same, as a multiple of the optimizer's",
    "weight_decay": "weight decay of a role",
}


def rates() -> str:
    """Where to begin, by kind of job and rule; a scale is no learning rate."""
    rows = [
        [job, rule, f"{rate:.0e}".replace("e-0", "e-"), source]
        for (job, rule), (rate, source) in STARTING_RATES.items()
        if rule != SCALE
    ]
    return table(["job", "optimizer", "begin with", "from"], rows)


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("options.md", options),
    "family": ("formulas.md", family_table),
    "rates": ("rates.md", rates),
}
"""Name of a section → its page, and what writes it."""


def renewed(text: str, name: str, written: str) -> str:
    """A page with one of its sections as it should be."""
    found = re.compile(f"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)", flags=re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"there is no one section {name!r}")
    return found.sub(lambda match: f"{match[1]}{written}\n{match[2]}", text)


def main() -> None:
    """Write them all."""
    for name, (page, write) in GENERATED.items():
        path = DOCS / page
        path.write_text(renewed(path.read_text(encoding="utf-8"), name, write()), encoding="utf-8")


if __name__ == "__main__":
    main()
