"""The pages: what can be copied from them runs, what they name exists, links lead somewhere, and they stay short."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import emo_hf
from emo_hf.cli_errors import saying
from emo_hf.laws import law_names
from emo_hf.laws.words import KINDS
from emo_hf.reading import read_value
from emo_hf.trainer.options import known_options, parse_optim_args, read_options
from tests.emo_cases import OPTIMIZERS
from tests.page_kit import Block, clear, commands, installs, prepare, run

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "scripts/README.md")),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("configs/*/README.md"),
    ],
    key=lambda page: (page != ROOT / "README.md", page),  # what its commands make, others use
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}

FENCE = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^ *```(\w*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)

MEASURED = re.compile(r"<!-- measured: .*?<!-- /measured -->", flags=re.DOTALL)

OF_OTHERS = {
    *("--config_file", "--num_processes", "--nproc_per_node"),  # accelerate, torchrun
    *("--nodes", "--gpus-per-node"),  # sbatch
    *("--optimizer_type", "--optimizer_args", "--fused_backward_pass"),  # kohya's scripts
    *("--optimizer", "--external_plugins", "--vit_lr", "--aligner_lr"),  # ms-swift
    *("--version", "--help", "--no-build-isolation", "--strict", "--short", "--to", "--cpu", "--mixed_precision"),
}
"""Flags that are not ours, or that every command has."""

KEYS_OF_OTHERS = {
    *("relative_step", "dtype", "offload_policy", "broadcast_from_rank0", "weights_only"),  # torch, transformers
    *("callbacks", "elementwise", "reads_scalar", "key"),  # of a Trainer, of a rule, and any
}
"""What is written `key=value` and is an argument of torch's or others' functions."""


def blocks(language: str = "") -> Iterator[Block]:
    """What can be copied, page by page."""
    for name, text in TEXTS.items():
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start(3))
            if language in ("", found[2]):
                yield Block(f"{name}:{line}", found[2], found[3], found[1] or "")


@pytest.mark.long
def test_what_can_be_copied_runs(tmp_path: Path) -> None:
    """One process imports everything, and is forked for each page's Python and for each shell block."""
    prepare(tmp_path)
    output = tmp_path / "output.txt"
    assert run(tmp_path, [], output) == 0, output.read_text(encoding="utf-8")
    failed = []
    for name in NAMES:
        clear(tmp_path)
        there = [block for block in blocks() if block.page.startswith(f"{name}:") and not block.not_run]
        together = [block for block in there if block.language == "python"]
        for group in [*([block] for block in there if block.language == "bash"), *([together] if together else [])]:
            code = run(tmp_path, group, output)
            printed = output.read_text(encoding="utf-8", errors="replace")
            if code or "was called without a loss" in printed:
                failed.append(f"{', '.join(block.page for block in group)}: exit code {code}\n{printed[-3000:]}")
    assert not failed, "\n\n".join(failed)


def test_the_example_with_batchnorm_ends_with_the_statistics_of_the_average() -> None:
    (block,) = [block for block in blocks("python") if "update_bn" in block.text]
    names: dict[str, Any] = {"emo_hf": emo_hf}
    exec(compile(block.text, block.page, "exec"), names)
    with torch.no_grad():
        expected = names["net"][0](names["inputs"]).mean(dim=0)
    torch.testing.assert_close(names["net"][1].running_mean, expected)


def test_commands_stand_in_blocks_that_are_run_and_the_few_others_say_why() -> None:
    for name, text in TEXTS.items():
        outside = MEASURED.sub("", FENCE.sub("", text))
        hidden = re.findall(r"^ {2,}(?:emo-hf|python|pip|accelerate|torchrun|import) .*$", outside, flags=re.MULTILINE)
        assert not hidden, f"{name}: {hidden}"
    assert {block.language for block in blocks()} <= {"python", "bash", "yaml", ""}
    runnable = [block for block in blocks() if block.language in ("python", "bash")]
    left_out = [block for block in runnable if block.not_run]
    assert len(left_out) < 0.5 * len(runnable)
    assert all(len(block.not_run) > 10 for block in left_out)


def test_packages_that_are_installed_exist_in_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    said = {extra for text in TEXTS.values() for extra in re.findall(r"(?:emo_hf|\.)\[(\w+)\]", text)}
    assert {"demo", "test", "hf"} <= said
    assert all(re.search(rf"^{extra} = \[", project, flags=re.MULTILINE) for extra in said), said


# Options


@cache
def arguments_of_train() -> Mapping[str, Any]:
    from transformers import TrainingArguments

    from emo_hf.train import options

    ours = [value for name, value in vars(options).items() if name.endswith("Arguments") and inspect.isclass(value)]
    return {field.name: field.type for cls in [TrainingArguments, *ours] for field in dataclasses.fields(cls)}


@cache
def flags_of_commands() -> set[str]:
    """Whatever our commands and scripts have as `--flag`."""
    files = [*ROOT.glob("emo_hf/**/*.py"), *ROOT.glob("scripts/*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".sh", ".sbatch")]
    return {flag for text in texts for flag in re.findall(r"[\"' (|](--[a-z][\w-]*)[\"'= )|]", text)}


@cache
def keywords() -> set[str]:
    """The keywords of public functions and classes."""
    from emo_hf.integrations.lightning import EmoLightningCallback
    from emo_hf.trainer.self_stop import SelfStop

    public = [getattr(emo_hf, name) for name in emo_hf.__all__ if callable(getattr(emo_hf, name))]
    methods = [emo_hf.EmoOptimizer.observe]
    found = [inspect.signature(one).parameters for one in [*public, *methods, EmoLightningCallback, SelfStop]]
    return {name for parameters in found for name in parameters}


def test_every_flag_of_a_command_exists() -> None:
    known = {f"--{name}" for name in arguments_of_train()} | flags_of_commands() | OF_OTHERS
    for block in blocks("bash"):
        for command in commands(block):
            for word in command:
                flag = word.partition("=")[0]
                if flag.startswith("--") and len(flag) > 2 and not installs(command):
                    assert flag in known, f"{block.page}: {flag} in {' '.join(command)}"
    for name, text in TEXTS.items():
        for flag in re.findall(r"`(--[a-z][\w-]*)", FENCE.sub("", text)):
            assert flag in known, f"{name}: {flag}"


def test_every_option_that_is_given_in_a_command_or_a_file_is_accepted() -> None:
    seen = 0
    for name, text in TEXTS.items():
        found = re.findall(r"--(?:optim|emotion)_args (\S+=\S+)|(?:optim|emotion)_args=\"(\S+?)\"", text)
        given = [parse_optim_args(one.strip("`")) for each in found if not re.search("…|KEY", one := max(each))]
        given += map(yaml.safe_load, re.findall(r"(?:optim|emotion)_args:\s+(\{[^}]*\})", text))
        seen += len(given)
        for options in given:
            with saying(f"{name}: ", ValueError):
                read_options({key: value for key, value in options.items() if key not in ("sync", "betas")})
    assert seen > 10


def test_every_option_that_is_named_exists_and_takes_the_value_beside_it() -> None:
    options = known_options()
    known = options.keys() | arguments_of_train().keys() | keywords() | KEYS_OF_OTHERS
    for name, text in TEXTS.items():
        for key, value in re.findall(r"`([a-z][a-z0-9_]*)=([^`\s]*)`", FENCE.sub("", text)):
            assert key in known, f"{name}: {key}={value}"
            if key in options and not re.search(r"[A-Z…]|^True|^\"", value):
                read_value(key, value, options[key].read)
            elif key in options and value in ("True", "False"):
                read_value(key, value == "True", options[key].read)


def test_tables_that_the_code_writes_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import write_pages

    for section, (page, write) in write_pages.GENERATED.items():
        text = TEXTS[f"docs/{page}"]
        assert write_pages.renewed(text, section, write()) == text, f"docs/{page}: run python scripts/write_pages.py"
    page = TEXTS["docs/options.md"]
    assert {*re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)} >= {
        name for name in known_options() if not re.fullmatch(r"\w+_(lr|lr_ratio|weight_decay)", name)
    } - {"decoupled_weight_decay"}


def test_every_metric_is_explained_and_every_metric_that_is_named_exists() -> None:
    page = TEXTS["docs/reading.md"]
    explained = {*re.findall(r"`(emo/\w+)`", page)}
    real = set()
    for cls in OPTIMIZERS:
        for law in (None, *law_names()):
            try:
                optimizer = cls([torch.nn.Parameter(torch.ones(1))], emo_law=law)
            except ValueError:  # a rule that reads σ takes its own law only
                continue
            real |= optimizer.metrics().keys()
    assert explained == real
    named = {metric for text in TEXTS.values() for metric in re.findall(r"\bemo/[a-z]\w*", text)}
    assert named <= real | {"emo/x"}


def test_every_kind_of_decision_and_every_law_is_explained() -> None:
    assert {*re.findall(r"^\| `(\w+)` \|", TEXTS["docs/reading.md"], flags=re.MULTILINE)} == KINDS.keys()
    laws = re.findall(r"^\| \[?`([\w.]+)`", TEXTS["docs/formulas.md"].partition("## Laws")[2], flags=re.MULTILINE)
    assert laws[1:] == [*law_names()]  # the first is the name of the column


# Names, links, length


def test_every_public_name_and_every_file_that_is_named_exists() -> None:
    folders = "emo_hf|tests|scripts|configs|docs"
    for name, text in TEXTS.items():
        for used in re.findall(r"\bemo_hf\.([A-Za-z_]+)", text):
            if not (ROOT / "emo_hf" / used).exists() and not (ROOT / "emo_hf" / f"{used}.py").exists():
                assert hasattr(emo_hf, used), f"{name}: emo_hf.{used}"
        for file in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:py|md|yaml|sh|c|sbatch))\b", text):
            assert (ROOT / file).exists(), f"{name}: {file}"


def test_links_lead_to_files_and_headings() -> None:
    for page in [*PAGES, *ROOT.glob("docs/evidence/*.md"), ROOT / "scripts" / "examples" / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.relative_to(ROOT)}: {target}"
            if anchor:
                assert anchor in anchors(file), f"{page.relative_to(ROOT)}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 130
    words = [word for text in TEXTS.values() for word in text.split() if re.search(r"\w", word)]
    assert len(words) <= 15_000
