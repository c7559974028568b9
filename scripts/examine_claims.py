"""Examines those claims of the optimizers' author that a comparison of end losses cannot judge, with v3.1's law.

    EMO_HF_DATA=data python scripts/examine_claims.py --seeds 3 --output docs/evidence/claims.json

8. The dynamic rate approximates higher moments: rank correlation of c with skewness and kurtosis of the gradient.
9. Dynamic rank and alpha of LoRA: effective rank and norm of ΔW, against c = 1 and against c = its own mean.
11. It repairs itself and the model: weights or state are damaged half-way; against c = 1 and AdamW, with shadow too.
12. Bounded steps: the largest |Δw|/lr, also after one loss of 1,000 times its size.

Runs of a seed share initial weights and batches. Learning rates are constant and those at which each optimizer does
well without emotion; v3.1 and its controls have the same one. No gradient is clipped. The verdicts follow the rules in
claims_verdicts.py. Some ten minutes on one core that has nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from claims_analysis import (
    OPTIMIZERS,
    Key,
    Record,
    examine_adapters,
    examine_moments,
    examine_repair,
    examine_steps,
    mean,
)
from claims_runs import BASELINE, DAMAGES, Arm, Run, Setting, adapter_shapes, step_bound
from claims_tables import tables
from claims_tasks import turned_digits
from claims_verdicts import plain, recovery
from measuring import write_report

from emo_hf.study.tasks import adapted, images, words

HEAD = """# Claims that end losses cannot judge

Written by `scripts/examine_claims.py`, which says what is measured; the same as figures in [claims.json](claims.json).
Differences are means over pairs of a task and a seed with a 95 % bootstrap interval, and p of a paired t-test adjusted
by Holm; * marks those that leave out 0 in both ways.
"""

SPIKE = 1000.0
AFTER = 32  # steps that are looked at after a spike, and for what c did after a damage
SETTINGS = {
    "questions": Setting(
        words.questions,
        240,
        {"EmoNavi": 1e-3, "EmoLynx": 1e-3, "EmoFact": 1e-2, BASELINE: 1e-2},
        frozenset({"8", "11", "12"}),
    ),
    "digits": Setting(
        images.digits_conv,
        300,
        {"EmoNavi": 1e-3, "EmoLynx": 3e-4, "EmoFact": 1e-3, BASELINE: 3e-3},
        frozenset({"8", "11", "12"}),
    ),
    "instructions": Setting(
        adapted.instructions,
        140,
        {"EmoNavi": 1e-3, "EmoLynx": 1e-3, "EmoFact": 3e-3, BASELINE: 3e-3},
        frozenset({"8", "9", "12"}),
    ),
    "turned digits": Setting(
        turned_digits, 300, {"EmoNavi": 1e-3, "EmoLynx": 1e-3, "EmoFact": 3e-3, BASELINE: 3e-3}, frozenset({"9"})
    ),
}
EXAMINERS = {"8": examine_moments, "9": examine_adapters, "11": examine_repair, "12": examine_steps}


def measure(setting: Setting, arm: Arm, seed: int, claims: Collection[str]) -> Record:
    """One run; half-way copies of it meet a spike (claim 12) and each damage (claim 11)."""
    run = Run(setting, arm, seed)
    half, rest = setting.steps // 2, setting.steps - setting.steps // 2
    moments = "8" in claims and arm.law in ("v3.1", "none") and not arm.shadow
    before = list(run.advance(half, moments=moments).loss)
    spiked = run.copy() if "12" in claims else None
    copies = {name: run.copy() for name in DAMAGES if "11" in claims}
    trace = run.advance(rest, moments=moments)
    record = {
        "end": run.end_loss(),
        "factor": statistics.mean(trace.factor) if trace.factor else 1.0,
        "acts": statistics.mean(factor != 1.0 for factor in trace.felt) if trace.felt else 0.0,
        "trace": trace,
        "damage": {},
        "adapter": adapter_shapes(run.model),
    }
    if spiked is not None:
        spike = spiked.advance(min(AFTER, rest), first_loss_times=SPIKE).step
        bound = step_bound(arm, run.params, setting.steps)
        record |= {"largest": max(trace.step), "bound": bound}
        record |= {"largest after spike": max(spike), "path after spike": sum(spike)}
    for name, other in copies.items():
        DAMAGES[name](other)
        after = other.advance(rest)
        excess = [a - b for a, b in zip(after.loss, trace.loss[half:], strict=True)]
        record["damage"][name] = {
            "steps": recovery(before, after.loss),
            "steps undamaged": recovery(before, trace.loss[half:]),
            "of": rest,
            "excess": statistics.mean(excess) / statistics.mean(before[-AFTER:]),
            "end": math.log(other.end_loss() / record["end"]),
            "c": mean(after.factor[:AFTER]) - mean(trace.factor[half : half + AFTER]),
        }
    return record


def measure_all(settings: Mapping[str, Setting], seeds: int) -> dict[Key, Record]:
    """Every run that the claims of the settings need."""
    found: dict[Key, Record] = {}
    for task, setting in settings.items():
        claims = setting.claims
        for seed in range(seeds if claims else 0):
            for name in OPTIMIZERS:
                for law in ("v3.1", "none"):
                    found[task, name, law, seed] = measure(setting, Arm(name, law), seed, claims)
                if "11" in claims:
                    found[task, name, "shadow", seed] = measure(setting, Arm(name, "v3.1", True), seed, {"11"})
                if "9" in claims:
                    constant = f"constant:{found[task, name, 'v3.1', seed]['factor']!r}"
                    found[task, name, "mean", seed] = measure(setting, Arm(name, constant), seed, {"9"})
            if {"11", "12"} & claims:
                found[task, BASELINE, "", seed] = measure(setting, Arm(BASELINE), seed, claims)
            print(f"{task}, seed {seed}: done", flush=True)
    return found


def examine(runs: Mapping[Key, Record], settings: Mapping[str, Setting]) -> Record:
    """Number → figures and verdict of each claim, as JSON takes them."""
    made: Record = {}
    for number, examiner in EXAMINERS.items():
        chosen = {key: run for key, run in runs.items() if number in settings[key[0]].claims}
        if chosen:
            made[number] = plain(examiner(chosen))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--claims", nargs="+", choices=EXAMINERS, default=list(EXAMINERS), help="only these; the "
                        "others stay in the output as they are")  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/evidence/claims.json"),
        help="path of .json; .md is written beside it",
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    settings = {task: replace(of, claims=of.claims & set(options.claims)) for task, of in SETTINGS.items()}
    claims = examine(measure_all(settings, options.seeds), settings)
    took = round(time.perf_counter() - begin)
    print(tables(claims))
    kept = json.loads(options.output.read_text(encoding="utf-8"))["claims"] if options.output.is_file() else {}
    said = {number: {"seeds": options.seeds, "seconds of this run": took, **claim} for number, claim in claims.items()}
    described = {task: {"steps": of.steps, "rates": of.rates, "claims": sorted(of.claims)} for task, of in
                 SETTINGS.items()}  # fmt: skip
    whole = {number: (kept | said)[number] for number in EXAMINERS if number in kept | said}
    write_report(options.output, {"settings": described, "claims": whole})
    text = f"{HEAD}\n{tables(whole)}\n"
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
