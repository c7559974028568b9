"""`emo-hf doctor`: looks at this installation, a checkpoint or a script; says what is wrong and what to do."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from emo_hf.cli_errors import UserError, at_least_one, one_sentence
from emo_hf.doctor import checkpoint, script, versions
from emo_hf.doctor.report import Finding, Report
from emo_hf.run import read_job

DESCRIPTION = """\
Without a target: the versions of what is installed, and a training of 20 steps that proves that the loss is felt. With
a checkpoint or a run's folder: what its emotion says. With a script: whether its loss would be felt; it is run for 20
steps, and what its Trainer writes goes to a scratch folder.
"""


def parser() -> argparse.ArgumentParser:
    """What the command takes before `--`."""
    made = argparse.ArgumentParser(
        prog="emo-hf doctor", description=DESCRIPTION, allow_abbrev=False,
        usage="emo-hf doctor [OPTIONS] [CHECKPOINT]\n       emo-hf doctor [OPTIONS] SCRIPT.py [-- ARGS ...]\n"
        "       emo-hf doctor [OPTIONS] -m MODULE [-- ARGS ...]",
        epilog="exit code: 0 all is well, 1 something is wrong, 2 the doctor was asked wrongly",
    )  # fmt: skip
    made.add_argument("target", nargs="?", metavar="TARGET", help="a checkpoint, a run's folder, or a Python script")
    made.add_argument("-m", dest="module", metavar="MODULE", help="a module to run instead of a script")
    made.add_argument("--json", action="store_true", help="print plain JSON")
    made.add_argument("--emotion", metavar="LAW", help="give the script's own optimizers an emotion of this law")
    made.add_argument("--steps", type=at_least_one, default=20, help="optimizer steps of a script (%(default)s)")
    made.add_argument("--timeout", type=at_least_one, default=600, help="seconds that a script may take (%(default)s)")
    return made


def show(report: Report, as_json: bool) -> int:
    """Print a report; the exit code is 1 if something is wrong, otherwise 0."""
    failed = any(finding.passed is False for finding in report.findings)
    print(json.dumps({"fine": not failed, **asdict(report)}, indent=2) if as_json else report, flush=True)
    return int(failed)


@one_sentence("emo-hf doctor")
def main(argv: Sequence[str] | None = None) -> int:
    """Examine, and print what was found. With a script the process ends here.

    Returns:
        0 if all is well, 1 if something is wrong, 2 for arguments that cannot be used, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    options, arguments = parser().parse_args(given[:cut]), given[cut + 1 :]
    target, module, emotion = options.target, options.module, options.emotion
    if target is not None and module is not None:
        raise UserError(f"either a target or -m MODULE, got {target!r} and {module!r} (arguments go after --)")
    if module is None and (target is None or not os.path.isfile(target)):
        if arguments or emotion is not None:
            what = f"arguments after -- ({' '.join(arguments)})" if arguments else "--emotion"
            raise UserError(f"{what} are for a script, got {'no target' if target is None else repr(target)}")
        if target is not None:
            return show(checkpoint.examine(checkpoint.newest_checkpoint(Path(target))), options.json)
    facts = Report({}, [])
    if module is None and target is None:
        facts, module = versions.examine(), "emo_hf.doctor.probe"
        if importlib.util.find_spec("transformers") is None:
            facts.findings.append(Finding("felt", None, "not tried: that needs transformers, which is not installed"))
            return show(facts, options.json)
    of_run = [*([] if emotion is None else ["--emotion", emotion]), *(["-m", module] if module else [target])]
    read_job(of_run)  # refuses what is wrong
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the script says

    def end(report: Report) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stdout, 1)
        whole = Report({**facts.facts, **report.facts}, [*facts.findings, *report.findings])
        os._exit(show(whole, options.json))  # threads and workers of a script that was cut off shall not hold it up

    return script.examine([*of_run, *arguments], options.steps, options.timeout, end)


if __name__ == "__main__":
    sys.exit(main())
