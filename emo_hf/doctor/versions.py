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
    wrong = []
    for requirement in map(Requirement, required):
        found = version_of(requirement.name)
        counts = requirement.marker is None or requirement.marker.evaluate({"extra": "hf"})
        if counts and found and not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        return Finding("versions", False, ", ".join(wrong), 'pip install --upgrade "emo_hf[hf]"')
    return Finding("versions", True, "all that is installed is supported")
