"""What would be published: the wheel and the sdist hold what they must, and the wheel works where no checkout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest

from emo_hf.optim.kernels.build import find_compiler

pytestmark = pytest.mark.long

for needed in ("hatchling", "twine"):
    pytest.importorskip(needed, reason=f"needs {needed}, which is in the extra `test`")

ROOT = Path(__file__).parent.parent

FOR_READERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "NOTICE")
TO_TEST = ("pyproject.toml", "constraints.txt", "tests/conftest.py", ".ci/run", ".ci/checks")

NOT_OURS = {"__pycache__", ".git", "outputs", "data", "dist", "build", ".pytest_cache", ".mypy_cache", ".ruff_cache"}

STEP = """
import json
import sys
from importlib.metadata import version

import torch

import emo_hf
from emo_hf.optim.kernels.build import kernels


def moves(native):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(1000))
    before = param.detach().clone()
    param.grad = torch.randn(1000)
    optimizer = emo_hf.EmoNavi([param], lr=1e-2, native=native)
    optimizer.observe(1.0)
    optimizer.step()
    return param.detach() - before


slow, fast = moves(False), moves(True)
said = {
    "file": emo_hf.__file__,
    "versions": [emo_hf.__version__, version("emo_hf")],
    "kernels": kernels() is not None,
    "moved": slow.abs().min().item(),
    "difference": (fast - slow).abs().max().item(),
    "imported": [name for name in ("transformers", "accelerate") if name in sys.modules],
}
json.dump(said, sys.stdout)
"""


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints, in a folder that is not the checkout, without the checkout on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EMO_HF"))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What `hatchling build` has made, and what is in it (of the sdist without its first folder)."""

    wheel: Path
    sdist: Path

    @property
    def in_wheel(self) -> dict[str, bytes]:
        with zipfile.ZipFile(self.wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    @property
    def in_sdist(self) -> dict[str, int]:
        with tarfile.open(self.sdist) as archive:
            return {"/".join(PurePosixPath(each.name).parts[1:]): each.size for each in archive if each.isfile()}

    @property
    def metadata(self) -> Message:
        return message_from_string(next(v.decode() for k, v in self.in_wheel.items() if k.endswith("/METADATA")))


def build(source: Path, into: Path, *targets: str) -> None:
    options = [part for target in targets for part in ("-t", target)]
    run(sys.executable, "-m", "hatchling", "build", *options, "-d", into, folder=source)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "sdist", "wheel")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist)


def fresh(package: Path, folder: Path) -> Path:
    """The Python of a new environment with nothing but a wheel or sdist and the packages that this one has."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    # Folders of a .pth file are not searched for .pth files of their own, such as an editable installation's.
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(packages), encoding="utf-8")
    installed = folder / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", installed, "install", "-q", "--no-index", "--no-deps",
        "--no-build-isolation", "--force-reinstall", "--ignore-installed", package, folder=folder.parent,
    )  # fmt: skip
    return installed


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "emo_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in built.in_wheel if ".dist-info/" not in name}
    assert found == package
    assert {"emo_hf/py.typed", "emo_hf/optim/kernels/common.h", "emo_hf/optim/kernels/navi.c"} <= found


def test_the_sdist_holds_documents_configurations_licences_sources_and_tests(built: Built) -> None:
    found = set(built.in_sdist)
    pages = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("docs/**/*.md", "configs/**/*.yaml", "configs/**/*.md", "scripts/**/*.*", "emo_hf/**/*.[ch]")
        for path in ROOT.glob(pattern)
        if "__pycache__" not in path.parts
    }
    assert set(FOR_READERS) | set(TO_TEST) | pages <= found
    assert not [name for name in found if NOT_OURS & set(PurePosixPath(name).parts) and not name.startswith("tests/")]
    assert not [name for name in found if name.startswith(".venv")]
    assert sum(built.in_sdist.values()) < 40e6


def test_a_wheel_made_from_the_sdist_is_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path, "wheel")
    (again,) = tmp_path.glob("*.whl")
    assert again.read_bytes() == built.wheel.read_bytes()


def test_what_the_package_says_of_itself_is_complete_and_a_package_index_would_take_both(built: Built) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist, folder=ROOT.parent)
    assert checked.count("PASSED") == 2, checked
    said = built.metadata
    assert (said["License-Expression"], said["Requires-Python"]) == ("Apache-2.0", ">=3.10")
    licences = {name.partition(".dist-info/")[2] for name in built.in_wheel if "/licenses/" in name}
    assert licences == {"licenses/LICENSE", "licenses/NOTICE"}
    versions = {line.rpartition(" ")[2] for line in said.get_all("Classifier", []) if "Python :: 3." in line}
    assert versions == {"3.10", "3.11", "3.12", "3.13"}
    assert [need for need in said.get_all("Requires-Dist", []) if "extra" not in need] == ["torch>=2.6"]
    assert said.get_payload().startswith("# emo_hf")


def test_the_sdist_can_be_installed_without_a_network_and_works_from_any_folder_with_kernels_that_it_compiles(
    built: Built, tmp_path: Path
) -> None:
    python = fresh(built.sdist, tmp_path / "env")
    said = json.loads(run(python, "-c", STEP, folder=tmp_path, EMO_HF_CACHE=str(tmp_path / "cache")))
    assert Path(said["file"]).is_relative_to(tmp_path / "env")
    assert said["versions"][0] == said["versions"][1]
    assert said["imported"] == []
    assert said["moved"] > 1e-4
    assert said["difference"] < 1e-6
    if find_compiler() is not None:
        assert said["kernels"]
        assert list((tmp_path / "cache").rglob("*.so")), "compiled now, from the sources in the wheel"
    said = run(python.parent / "emo-hf", "doctor", folder=tmp_path, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    assert "ok      felt (EmoNavi): 20 steps" in said
