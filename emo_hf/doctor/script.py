"""Whether the loss of a script would be felt: runs it for some steps and compares felt, sent and logged losses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_hf.doctor.felt import agree, first_difference
from emo_hf.doctor.findings import Finding, Report

FOLDERS = ("--output_dir", "--output-dir", "--logging_dir", "--logging-dir", "--project_dir", "--project-dir")
"""Options by which scripts of all kinds are told where to write; under the doctor that is a scratch folder."""
TAIL = 15  # lines of a script that failed

NO_EMOTION = (
    "pass --optim emonavi to a Trainer's script, or keep its optimizer and give it an emotion: emo-hf run --emotion "
    "v3.1 SCRIPT; in a loop of your own make the optimizer with emo_hf.create_optimizer"
)
SHOW_IT = (
    "send the loss through accelerator.backward(loss), or call optimizer.observe(loss) before loss.backward(), or "
    "have emo_hf.feel_backward(optimizer) around the loop; outside of accelerate nothing is felt unasked"
)


def examine(arguments: Sequence[str], *, steps: int, timeout: float) -> Report:
    """Run a script and judge what was seen.

    Args:
        arguments: those of `emo-hf run`.
        steps: optimizer steps after which it is ended.
        timeout: seconds after which it is ended in any case.
    """
    with tempfile.TemporaryDirectory(prefix="emo-hf-doctor-", ignore_cleanup_errors=True) as scratch:
        result, said = _run(redirected(arguments, scratch), Path(scratch), steps=steps, timeout=timeout)
    facts = {"script": {"run as": " ".join(["emo-hf run", *arguments]), "ended": result["ended"]}}
    facts["script"] |= {
        f"optimizer {i + 1}": f"{each['optimizer']}, {each['steps']} steps, "
        + ("no emotion" if each["law"] is None else f"law {each['law']}")
        for i, each in enumerate(result["optimizers"])
    }
    return Report(facts=facts, findings=judge(result, said))


def redirected(arguments: Sequence[str], scratch: str) -> list[str]:
    """The arguments with a scratch folder wherever they name one to write to."""
    made, follows = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if follows:
            made.append(scratch)
        elif name in FOLDERS and equals:
            made.append(f"{name}={scratch}")
        else:
            made.append(argument)
        follows = argument in FOLDERS
    return made


def _run(arguments: Sequence[str], scratch: Path, *, steps: int, timeout: float) -> tuple[dict[str, Any], str]:
    """What was seen, and the end of what the script has said."""
    target, log = scratch / "result.json", scratch / "said.txt"
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in (known, package) if path),
        "WANDB_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "emo_hf.doctor.watch", str(target), str(steps), str(scratch / "out"), *arguments]
    ended = None
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            ended = f"ended after {timeout:g} seconds"
        finally:
            _end(process)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
    nothing = {"ended": ended or f"exit code {process.returncode}", "optimizers": [], "sent": [], "logged": []}
    nothing["error"] = (
        f"it had not taken {steps} steps after {timeout:g} seconds: give more with --timeout, or fewer --steps"
        if ended
        else f"it ended with exit code {process.returncode} and without a word"
    )
    if not target.is_file():
        return nothing, tail
    return json.loads(target.read_text(encoding="utf-8")), tail


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a script and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(result: Mapping[str, Any], said: str = "") -> list[Finding]:
    """Felt or not felt, and the remedy.

    Args:
        result: what `watch.py` has written.
        said: the end of what the script has said, for one that failed.
    """
    findings: list[Finding] = []
    if result["error"]:
        findings.append(
            Finding(name="script", passed=False, said="\n".join(part for part in (result["error"], said) if part))
        )
    optimizers = result["optimizers"]
    if not optimizers:
        if not findings:
            findings.append(
                Finding(
                    name="script",
                    passed=False,
                    said="it took no optimizer step",
                    remedy="check its arguments; of a launcher, whose steps are in other processes, name the script",
                )
            )
        return findings
    emotional = [each for each in optimizers if each["law"] is not None]
    if not emotional:
        names = ", ".join(f"{each['optimizer']} ({each['steps']} steps)" for each in optimizers)
        return [
            *findings,
            Finding(name="felt", passed=False, said=f"not felt: {names} has no emotion", remedy=NO_EMOTION),
        ]
    return [*findings, *(_felt(each, result) for each in emotional)]


def _felt(each: Mapping[str, Any], result: Mapping[str, Any]) -> Finding:
    """One optimizer's losses against those that were logged, or else sent to backward."""
    felt, steps, name = each["felt"], each["steps"], f"felt ({each['optimizer']})"
    if not felt:
        said = f"not felt: no loss has reached it in {steps} steps"
        return Finding(name=name, passed=False, said=said, remedy=SHOW_IT)
    if len(felt) < steps:
        said = f"felt in part: {len(felt)} losses in {steps} steps"
        return Finding(name=name, passed=False, said=said, remedy="every step needs its loss: " + SHOW_IT)
    logged = [loss for _, loss in result["logged"]]
    if logged:
        wrong = first_difference(felt, logged)
        if wrong is None:
            said = f"{steps} steps, as logged ({_both(felt, logged)})"
            return Finding(name=name, said=said)
        said = f"step {wrong + 1}: felt {felt[wrong]:.6g}, logged {logged[wrong]:.6g}"
        remedy = (
            "show the loss that you mean with optimizer.observe(loss): it takes precedence over what goes by itself"
        )
        return Finding(name=name, passed=False, said=f"another loss than was logged. {said}", remedy=remedy)
    sums = [sum(losses) for losses in result["sent"]]
    means = [sum(losses) / len(losses) if losses else 0.0 for losses in result["sent"]]
    for what, sent in (("the mean of what was", means), ("the sum of what was", sums)):
        if first_difference(felt, sent) is None:
            of = "what was" if all(len(losses) == 1 for losses in result["sent"]) else what
            return Finding(name=name, said=f"{steps} steps, {of} sent to backward ({_both(felt, sent)})")
    wrong = first_difference(felt, means) or 0
    said = f"step {wrong + 1}: felt {felt[wrong]:.6g}, sent to backward {means[wrong]:.6g} on average"
    if _of_one_ratio(felt, means):
        return Finding(name=name, said=f"{steps} steps, what was sent to backward at another scale ({said})")
    return Finding(
        name=name,
        passed=None,
        said=f"felt, but it is not what was sent to backward. {said}",
        remedy="that is as it should be if you show a loss of your own with observe; else show the one that you mean",
    )


def _both(felt: Sequence[float], other: Sequence[float]) -> str:
    return f"{felt[0]:.4f} → {felt[-1]:.4f} felt, {other[0]:.4f} → {other[min(len(felt), len(other)) - 1]:.4f}"


def _of_one_ratio(felt: Sequence[float], other: Sequence[float]) -> bool:
    ratios = [ours / theirs for ours, theirs in zip(felt, other, strict=False) if theirs]
    return bool(ratios) and all(agree(ratio, ratios[0]) for ratio in ratios)
