"""Python, the packages that the project requires, and the optional ones."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import import_module, metadata
from textwrap import shorten
from typing import TYPE_CHECKING

from medcoss_components._version import __version__
from medcoss_components.doctor.findings import ERROR, OK, WARNING, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "medcoss-components"
EXTRAS = {
    "highdicom": ("highdicom", "dicom", "DICOM segmentations as output"),
    "onnx": ("onnx", "export", "export to ONNX"),
    "onnxruntime": ("onnxruntime", "export", "running exported ONNX models"),
    "h5py": ("h5py", "datasets", "LA 2018 in its h5 layout"),
    "openslide-python": ("openslide", "datasets", "whole-slide images"),
}
"""Optional package -> (module, extra that installs it, what it is for)."""


def check_python() -> Iterator[Finding]:
    """The interpreter against what the package admits, and the package itself."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    wanted = _requires_python()
    fits = version in SpecifierSet(wanted)
    advice = "" if fits else f"install the package under a Python {wanted}"
    yield Finding(OK if fits else ERROR, "Python", f"{version}, {wanted} is required", advice)
    yield Finding(OK, DISTRIBUTION, __version__)


def _requires_python() -> str:
    try:
        return str(metadata.metadata(DISTRIBUTION)["Requires-Python"] or ">=3.10")
    except metadata.PackageNotFoundError:
        return ">=3.10"


def check_requirements() -> Iterator[Finding]:
    """Every required package: installed, and in an admitted version."""
    from packaging.requirements import Requirement

    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        advice = "pip install medcoss-components; requirements could not be compared"
        yield Finding(WARNING, "packages", f"{DISTRIBUTION} is imported from a folder, not installed", advice)
        return
    for text in listed:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _compared(requirement)


def _compared(requirement: Requirement) -> Finding:
    name, rule = requirement.name, str(requirement.specifier)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(
            ERROR, name, f"not installed, {rule or 'any version'} is required", f"pip install '{name}{rule}'"
        )
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(OK, name, version, fold="packages")
    return Finding(ERROR, name, f"{version}, {rule} is required", f"pip install '{name}{rule}'")


def check_extras() -> Iterator[Finding]:
    """Optional packages: usable, absent (no fault), or installed and broken."""
    for name, (module, extra, purpose) in EXTRAS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            install = f"pip install '{DISTRIBUTION}[{extra}]'"
            yield Finding(OK, name, f"not installed; only for {purpose} ({install})")
            continue
        try:
            import_module(module)
        except Exception as error:  # a package without its shared library raises what it likes
            advice = f"reinstall it (pip install --force-reinstall {name}); needed only for {purpose}"
            yield Finding(WARNING, name, f"{version}, cannot be imported ({type(error).__name__})", advice)
        else:
            yield Finding(OK, name, version, fold="optional")


def check_torch() -> Iterator[Finding]:
    """The build of torch; a wrong one for this system does not even load."""
    try:
        import torch
    except Exception as error:  # a missing shared library raises OSError or ImportError
        reason = shorten(f"{type(error).__name__}: {error}", 160)
        advice = "install the build of torch for this system; the other checks that need torch fail with it"
        yield Finding(ERROR, "torch", f"cannot be imported ({reason})", advice)
        return
    cuda = torch.version.cuda or getattr(torch.version, "hip", None)
    build = f"built for CUDA {cuda}" if torch.version.cuda else f"built for ROCm {cuda}" if cuda else "CPU build"
    yield Finding(OK, "torch", f"{torch.__version__}, {build}")
