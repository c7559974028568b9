"""`emo-hf doctor`: looks at this installation, a checkpoint or a script; says what is wrong and what to do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emo_hf.doctor.findings import Report
from emo_hf.laws import law_names, read_law

DESCRIPTION = """\
Without a target: what is supported here, which fast paths work and why others do not, and a 20-step probe that
proves that the loss is felt. With a checkpoint or a run's folder: what its emotion says. With a script: whether its
loss would be felt; it is run for 20 steps, in a process of its own, and what its Trainer writes goes to a scratch
folder.
"""


class UsageError(Exception):
    """What was asked for cannot be done; its text says why."""


def parser() -> argparse.ArgumentParser:
    """What the command takes before `--`."""
    made = argparse.ArgumentParser(
        prog="emo-hf doctor", description=DESCRIPTION, allow_abbrev=False,
        usage="emo-hf doctor [--json] [CHECKPOINT]\n"
        "       emo-hf doctor [--json] [--emotion LAW] [--steps N] [--timeout SECONDS] SCRIPT.py [-- ARGS ...]\n"
        "       emo-hf doctor [--json] [--emotion LAW] [--steps N] [--timeout SECONDS] -m MODULE [-- ARGS ...]",
        epilog="exit code: 0 all is well, 1 something is wrong, 2 the doctor was asked wrongly",
    )  # fmt: skip
    made.add_argument("target", nargs="?", metavar="TARGET", help="a checkpoint, a run's folder, or a Python script")
    made.add_argument("-m", dest="module", metavar="MODULE", help="a module to run instead of a script")
    made.add_argument("--json", action="store_true", help="print plain JSON")
    made.add_argument("--emotion", metavar="LAW", help="give the script's own optimizers an emotion of this law")
    made.add_argument("--steps", type=_count, default=20, help="optimizer steps of a script (%(default)s)")
    made.add_argument("--timeout", type=_count, default=600, help="seconds that a script may take (%(default)s)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Examine, and print what was found.

    Args:
        argv: the arguments after `emo-hf doctor`; the process's own if None.

    Returns:
        0 if all is well, 1 if something is wrong, 2 for arguments that cannot be used, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    try:
        options = parser().parse_args(given[:cut])
        report = _report(options, given[cut + 1 :])
    except UsageError as error:
        print(f"emo-hf doctor: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    except KeyboardInterrupt:
        return 130
    text = json.dumps(report.plain(), indent=2) if options.json else report.text()
    print(text)  # noqa: T201
    return report.exit_code


def _report(options: argparse.Namespace, arguments: list[str]) -> Report:
    target, module = options.target, options.module
    if target is not None and module is not None:
        raise UsageError(f"either a target or -m MODULE, got {target!r} and {module!r} (arguments go after --)")
    if options.emotion is not None:
        try:
            read_law(options.emotion)
        except ValueError:
            raise UsageError(f"--emotion takes one of {', '.join(law_names())}, got {options.emotion!r}") from None
    runs = module is not None or (target is not None and os.path.isfile(target))
    if not runs and (arguments or options.emotion is not None):
        what = f"arguments after -- ({' '.join(arguments)})" if arguments else "--emotion"
        raise UsageError(f"{what} are for a script, got {'no target' if target is None else repr(target)}")
    if runs:
        from emo_hf.doctor import script

        emotion = [] if options.emotion is None else ["--emotion", options.emotion]
        runs_what = ["-m", module] if module is not None else [target]
        return script.examine([*emotion, *runs_what, *arguments], steps=options.steps, timeout=options.timeout)
    if target is not None:
        return _of_checkpoint(Path(target))
    return _of_installation()


def _of_checkpoint(folder: Path) -> Report:
    from emo_hf.doctor import checkpoint

    if not folder.is_dir():
        raise UsageError(f"there is no checkpoint and no script {str(folder)!r}")
    found = checkpoint.newest_checkpoint(folder)
    if found is None:
        raise UsageError(f"{str(folder)!r} holds neither optimizer.pt, nor trainer_state.json, nor a checkpoint")
    return checkpoint.examine(found)


def _of_installation() -> Report:
    from emo_hf.doctor import environment
    from emo_hf.doctor.probe import probe

    facts = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "what moves parameters": environment.chosen_paths(),
    }
    return Report(facts=facts, findings=[environment.supported(), *environment.fast_paths(), *probe()])


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
