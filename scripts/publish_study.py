"""Puts a study's report and its runs into docs/evidence, small enough for a repository.

    python scripts/publish_study.py configs/studies/report.yaml outputs/studies/report docs/evidence/report

The report is that of `emo-hf compare --report`. Of each run everything is kept but what takes most of the room: the
factors of all steps become at most 50 means, and the training curve 50 points.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from emo_hf.study.outcome import thinned
from emo_hf.study.study import read_study

from emo_hf.study.analysis import Analysis
from emo_hf.study.plan import Line
from emo_hf.study.report import write_report
from emo_hf.study.results import Results

POINTS = 50
RUNS = "runs.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("results", type=Path, help="what --output_dir was")
    parser.add_argument("to", type=Path)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    study = read_study(options.study)
    lines = Results(options.results).lines
    write_report(study, lines, options.to)
    kept = Analysis(study, lines).lines
    (options.to / "report.html").unlink()  # the same once more, with the pictures inside
    shutil.copyfile(options.study, options.to / "study.yaml")
    with gzip.GzipFile(options.to / RUNS, "wb", mtime=0) as file:
        for line in kept:
            file.write((json.dumps(small(line)) + "\n").encode())
    print(
        f"{len(kept)} runs, {sum(path.stat().st_size for path in options.to.iterdir()) / 1e6:.1f} MB in {options.to}"
    )


def small(line: Line) -> dict[str, Any]:
    """A run's line without its weight."""
    kept: dict[str, Any] = {
        key: value for key, value in line.items() if key not in ("config", "fingerprint", "versions", "machine")
    }
    if "curve" in kept:
        train = kept["curve"]["train"]
        kept["curve"] = {**kept["curve"], "train": train[:: max(1, len(train) // POINTS)]}
    if kept.get("emotion"):
        factors = kept["emotion"]["factors"]
        kept["emotion"] = {
            **{key: value for key, value in kept["emotion"].items() if key not in ("decay_factors", "sigma_curve")},
            "factors": [[step, round(mean, 4)] for step, mean in thinned(factors, POINTS) if mean is not None],
            "law": without_folder(kept["emotion"]["law"]),
        }
    return kept


def without_folder(law: str) -> str:
    """`replay:FILE#RUN` without the folder that the file lay in."""
    kind, _, where = law.partition(":")
    file, hash_sign, run = where.partition("#")
    return f"{kind}:{Path(file).name}#{run}" if hash_sign else law


if __name__ == "__main__":
    main()
