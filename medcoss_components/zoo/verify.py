"""Everything that a bundle must pass before it is published: ``medcoss bundles verify``.

Static checks come first and build nothing; then the shipped network is built once, a brief training runs, and the
exports are compared with PyTorch. A check returns a remark or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcoss_components.errors import InputError
from medcoss_components.zoo import inspection
from medcoss_components.zoo.runtime import check_settings
from medcoss_components.zoo.verify_network import check_network, check_onnx, check_torchscript, check_weights
from medcoss_components.zoo.verify_subject import CheckFailed, NotRun, Subject, root_cause
from medcoss_components.zoo.verify_workflow import check_inference, check_properties, check_training

OK, FAILED, NOT_RUN = "ok", "failed", "not run"


@dataclass(frozen=True)
class Outcome:
    """What one check of one bundle came to.

    Attributes:
        bundle: name of the bundle.
        check: name in :data:`CHECKS`.
        status: "ok", "failed" or "not run".
        reason: why it failed or was not run; a remark when it passed, or empty.
    """

    bundle: str
    check: str
    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.bundle}: {self.check}: {self.status}" + (f": {self.reason}" if self.reason else "")


def _raise(problems: Iterable[str]) -> str:
    if found := list(problems):
        raise CheckFailed("; ".join(found))
    return ""


def _files(*names: str) -> Callable[[Subject], str]:
    return lambda subject: _raise(inspection.missing_files(subject.folder, names))


def _each_config(check: Callable[..., list[str]]) -> Callable[[Subject], str]:
    def run(subject: Subject) -> str:
        configs = subject.configs.items()
        return _raise(f"{name}: {problem}" for name, config in configs for problem in check(config))

    return run


def _check_settings(subject: Subject) -> str:
    for name, config in subject.configs.items():
        try:
            check_settings(config)
        except InputError as error:
            raise CheckFailed(f"{name}: {error}") from error
    return ""


CHECKS: dict[str, Callable[[Subject], str]] = {
    "readme": _files("docs/README.md"),
    "licence": _files("LICENSE"),
    "workflows": _files(*(f"configs/{name}.json" for name in ("train", "evaluate", "inference"))),
    "logging": _files("configs/logging.conf"),
    "metadata": lambda subject: _raise(inspection.schema_problems(subject.metadata)),
    "changelog": lambda subject: _raise(inspection.changelog_problems(subject.metadata)),
    "targets": _each_config(inspection.target_problems),
    "references": _each_config(inspection.reference_problems),
    "paths": _each_config(inspection.text_problems),
    "headers": _each_config(inspection.about_problems),
    "reserved names": _each_config(inspection.reserved_problems),
    "settings": _check_settings,
    "network": check_network,
    "weights": check_weights,
    "properties": check_properties,
    "training": check_training,
    "inference": check_inference,
    "torchscript": check_torchscript,
    "onnx": check_onnx,
}
"""Name -> check, in the order in which they run."""


def bundle_folders(root: str | Path, names: Sequence[str] | None = None) -> list[Path]:
    """Folders below ``root`` that are bundles: all, or those named.

    Raises:
        InputError: when there is none, or none of that name.
    """
    known = {path.parent.name: path.parent for path in sorted(Path(root).glob("*/configs"))}
    if not known:
        raise InputError(f"{root}: no folder with configs in it. Give the folder that holds the bundles (--root).")
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(f"no bundle called {', '.join(unknown)} below {root}; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def verify_bundle(
    folder: str | Path, *, weights: str | Path | None = None, checks: Sequence[str] = tuple(CHECKS)
) -> Iterator[Outcome]:
    """Run checks on one bundle, each as soon as the caller asks for the next outcome.

    Args:
        folder: the bundle.
        weights: weights to load strictly; None for the bundle's own models/model.pt, when it has one.
        checks: names in :data:`CHECKS`.
    """
    with Subject(Path(folder), Path(weights) if weights is not None else None) as subject:
        for name in checks:
            status, reason = _run(CHECKS[name], subject)
            yield Outcome(subject.folder.resolve().name, name, status, reason)


def _run(check: Callable[[Subject], str], subject: Subject) -> tuple[str, str]:
    try:
        return OK, check(subject)
    except NotRun as reason:
        return NOT_RUN, str(reason)
    except Exception as error:  # whatever a bundle raises is a finding, and the other checks still run
        return FAILED, root_cause(error)
