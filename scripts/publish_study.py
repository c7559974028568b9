"""Puts studies into docs/evidence: a page and a figure of each, and all of their runs in one file.

    python scripts/publish_study.py outputs/studies configs/studies/pretrained.yaml configs/studies/report.yaml

The pages are those of `emo-hf compare --report`. Of each run everything is kept, but the training losses as 25 means.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

from emo_hf.study.analysis import Analysis
from emo_hf.study.plan import Line
from emo_hf.study.report import write_report
from emo_hf.study.results import Results
from emo_hf.study.schema import read_study

POINTS = 25
MOST_BYTES = 3_000_000
RUNS = "runs.jsonl.gz"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what --output_dir was")
    parser.add_argument("studies", type=Path, nargs="+", help="YAML files")
    parser.add_argument("--to", type=Path, default=Path("docs/evidence"))
    options = parser.parse_args(argv)
    options.to.mkdir(parents=True, exist_ok=True)
    lines = Results(options.results).lines
    kept: dict[str, Line] = {}
    for path in options.studies:
        study = read_study(path)
        for file in write_report(study, lines, options.to):
            print(file)
        kept |= {line["key"]: line for line in Analysis(study, lines).lines}
    text = "".join(json.dumps(smaller(line)) + "\n" for line in kept.values())
    (options.to / RUNS).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    size = sum(file.stat().st_size for file in options.to.rglob("*") if file.is_file())
    print(f"{options.to / RUNS}: {len(kept):,} runs; {size / 1e6:.1f} MB in the folder")
    if size > MOST_BYTES:
        print(f"{options.to} is larger than {MOST_BYTES / 1e6:g} MB", file=sys.stderr)
        return 1
    return 0


def smaller(line: Line) -> dict[str, Any]:
    """A run with fewer points of its training losses."""
    losses = line["losses"]
    every = -(-len(losses) // POINTS)
    parts = [losses[i : i + every] for i in range(0, len(losses), every)]
    means = [[part[-1][0], mean([loss for _, loss in part])] for part in parts]
    fingerprint = {**line["fingerprint"], "batches": line["fingerprint"]["batches"][:1]}
    return {**line, "losses": means, "fingerprint": fingerprint}


def mean(losses: list[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return float(f"{sum(known) / len(known):.5g}") if len(known) == len(losses) else None


if __name__ == "__main__":
    sys.exit(main())
