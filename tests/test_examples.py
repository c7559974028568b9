"""Each script of scripts/examples runs as it stands there, learns, and its emotion has felt every step."""

from __future__ import annotations

import os
import re
import runpy
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ranks import begin

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "scripts" / "examples"
README = (FOLDER / "README.md").read_text(encoding="utf-8")

NEEDS = {"in_lightning": "lightning"}
"""What the tests' own environment may lack."""

STEPS = {
    "accelerate_loop": 480,
    "attach_settle": None,  # stops by itself
    "flow_matching": 1000,
    "in_lightning": 512,
    "lora": 100,
    "trainer": 100,
    "trl_dpo": 40,
    "trl_sft": 80,
}
"""How many optimizer steps each takes."""

EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(name: str, folder: Path) -> str:
    """What an example prints, without a network, and with everything that it writes in a folder of the test.

    The processes of all examples share what they would each import.
    """
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    output = folder / "printed.txt"
    process = begin(as_main, str(FOLDER / f"{name}.py"), str(folder), environment=environment, output=output)
    process.join(300)
    process.kill()
    printed = output.read_text(encoding="utf-8")
    assert process.exitcode == 0, printed
    assert "was called without a loss" not in printed
    return printed


def as_main(script: str, folder: str) -> None:
    """Run a script in this process as `python SCRIPT` would."""
    os.chdir(folder)
    tempfile.tempdir = None  # what an import has asked for before it was set for this process
    runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_and_learns_and_its_emotion_feels_every_step(name: str, tmp_path: Path) -> None:
    printed = run(name, tmp_path)
    trained = re.search(r"^Trained [\d,]+ .*parameters: loss ([\d.]+) → ([\d.]+)$", printed, flags=re.MULTILINE)
    assert trained, printed
    assert float(trained[2]) < 0.95 * float(trained[1])
    felt = re.search(r"^The emotion felt (\d+) losses", printed, flags=re.MULTILINE)
    assert felt, printed
    if STEPS[name] is not None:
        assert int(felt[1]) == STEPS[name]
    if name == "attach_settle":
        assert "training may end: 3 evaluations in a row were no better" in printed
        assert printed.rstrip().endswith("does it say stop? True")
        assert int(felt[1]) < 5000, "it stopped before its limit"


def test_the_readme_lists_every_example_and_no_other_and_each_says_how_it_is_run() -> None:
    assert sorted(re.findall(r"^\| `(\w+)\.py`", README, flags=re.MULTILINE)) == EXAMPLES
    for name in EXAMPLES:
        assert f"python scripts/examples/{name}.py" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")
