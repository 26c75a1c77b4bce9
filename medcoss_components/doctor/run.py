"""Putting the checks together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medcoss_components.doctor.findings import Finding, Section, gathered


@dataclass(frozen=True)
class DataCase:
    """A manifest under examination.

    Args:
        path: the JSON file.
        dataset_dir: folder that its paths start from; None: its own.
        bundle: folder of the bundle that will train on it; None: none.
        store_dir: folder of all stores; None: the bundle's own.
        settings: keys of the bundle's training config.
        overlays: configs merged over train.json.
    """

    path: Path
    dataset_dir: Path | None = None
    bundle: Path | None = None
    store_dir: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    overlays: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What the doctor looks at beside the installation and the machine.

    Args:
        data: manifests, each with the bundle and folders of its training.
        bundle: a bundle to look at; its static checks.
        store_dir: folder of stores.
        output_dir: folder of a training's results.
    """

    data: tuple[DataCase, ...] = ()
    bundle: Path | None = None
    store_dir: Path | None = None
    output_dir: Path | None = None


def examine(examination: Examination) -> Iterator[Section]:
    """Run every check; sections come as they are finished. Only temporary files are written.

    A check that fails itself is an error of its section; nothing is raised for what is wrong with the machine or the
    data.
    """
    from medcoss_components.doctor import decoding, installation, machine

    packages = (
        installation.check_python,
        installation.check_torch,
        installation.check_requirements,
        installation.check_extras,
    )
    yield gathered("Installation", packages)
    computer = (
        machine.check_processor,
        machine.check_memory,
        machine.check_gpu,
        machine.check_shared_memory,
        machine.check_open_files,
    )
    yield gathered("Machine", computer)
    yield gathered("Readers", (decoding.check_readers,))
    yield _places(examination)
    if examination.bundle is not None:
        yield gathered(f"Bundle {examination.bundle.resolve().name}", (partial(_check_bundle, examination.bundle),))
    rooms: dict[Path, int] = {}
    for case in examination.data:
        yield gathered(f"Data {case.path}", (partial(_check_data, case, rooms),))
    if rooms:
        yield gathered("Disk", (partial(_check_room, rooms),))


def _places(examination: Examination) -> Section:
    from medcoss_components.doctor import places

    checks = [places.check_salt, places.check_tracking]
    if examination.output_dir is not None:
        checks.append(partial(places.check_folder, examination.output_dir, "output folder", places.OUTPUT_NEEDED))
    if examination.store_dir is not None:
        checks.append(partial(places.check_folder, examination.store_dir, "store folder"))
    return gathered("Privacy, tracking and folders", checks)


def _check_data(case: DataCase, rooms: dict[Path, int]) -> Iterator[Finding]:
    from medcoss_components.doctor.data import check_data

    yield from check_data(case, rooms)


def _check_room(rooms: dict[Path, int]) -> Iterator[Finding]:
    from medcoss_components.doctor.data import check_room

    yield from check_room(rooms)


def _check_bundle(folder: Path) -> Iterator[Finding]:
    """The bundle's configs, statically: parts exist, arguments and references are right, metadata fit their schema."""
    from medcoss_components.doctor.findings import ERROR, OK
    from medcoss_components.zoo.inspection import bundle_problems, config_problems, workflow_configs

    if not (folder / "configs").is_dir():
        yield Finding(ERROR, "bundle", f"{folder}: holds no configs", "give the folder of a bundle")
        return
    configs = workflow_configs(folder)
    problems = [f"{name}: {problem}" for name, config in configs.items() for problem in config_problems(config)]
    problems += bundle_problems(folder)
    for problem in problems:
        yield Finding(ERROR, "bundle", problem, "`medcoss bundles verify` checks the bundle in full")
    if not problems:
        yield Finding(OK, "configs", f"{', '.join(configs)}: parts, arguments and references are right")
