"""What is installed here, and whether it is supported."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from emo_hf.doctor.report import Finding, Report

PACKAGES = (
    "emo_hf", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "lightning", "triton",
)  # fmt: skip


def examine() -> Report:
    """Versions and devices."""
    facts = {"python": platform.python_version()}
    facts |= {package: version_of(package) or "not installed" for package in PACKAGES}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts["devices"] = ", ".join(["cpu", *(torch.cuda.get_device_name(index) for index in range(count))])
    return Report(facts, [supported()])


def version_of(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def supported() -> Finding:
    """Whether the versions here are those that this package was made for."""
    try:
        required = importlib.metadata.requires("emo_hf") or []
        from packaging.requirements import Requirement
    except ImportError as error:  # this package is not installed, but found on the path
        return Finding("versions", None, f"what is required is not known here ({error})")
    counts = [each for each in map(Requirement, required) if not each.marker or each.marker.evaluate({"extra": "hf"})]
    found = [(each, (version_of(each.name) or "").partition("+")[0]) for each in counts]
    wrong = [f"{each.name} {version} is not {each.specifier}" for each, version in found
             if version and not each.specifier.contains(version, prereleases=True)]  # fmt: skip
    if wrong:
        return Finding("versions", False, ", ".join(wrong), 'pip install --upgrade "emo_hf[hf]"')
    return Finding("versions", True, "all that is installed is supported")
