"""Preparing, before a training, the stores that a bundle's training will ask for.

The bundle's own config says which: its parts ``train#dataset``, ``validate#dataset`` and ``test#dataset`` are built as
MONAI builds them, so that manifest, preparation, input size and vocabulary cannot differ from the training's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medcoss_components.data.case_store import CaseStore
from medcoss_components.data.store_sizes import folder_bytes, size_text
from medcoss_components.errors import InputError
from medcoss_components.files import read_json

DATASETS = {"training": "train#dataset", "validation": "validate#dataset", "testing": "test#dataset"}
"""Split of a task -> part of a training config that reads it; pre-training has no testing."""
CHAIN_KEYS = ("preparation_workers", "max_bad_share", "vocabulary_size", "vocabulary", "extra_modalities")
"""Settings of a chain that decide the stores of its stages, or how they are made."""
CHAIN_ENTRY_KEYS = ("preparation", "max_bad_share", "dataset_dir")


@dataclass(frozen=True)
class PreparedSplit:
    """What there is of one split after the preparation.

    Args:
        split: of the task; without a validation split in the manifest, validation is a share of the training store.
        kind: "samples", or "cases" with masks.
        samples: that the training will read.
        store: folder; None where the split has no items.
        stored: samples or cases in the store.
        bytes: of the store's files.
        left_out: (item, reason) of the items that could not be used.
        constant: samples left out because all their values are equal.
        made: whether the store was made now; False: it was there.
        seconds: that this took.
    """

    split: str
    kind: str = "samples"
    samples: int = 0
    store: Path | None = None
    stored: int = 0
    bytes: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    constant: int = 0
    made: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"store": None if self.store is None else str(self.store)}


def prepare_for_bundle(
    bundle: str | Path,
    manifest: str | Path,
    store_dir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    overlays: Sequence[str] = (),
    dataset_dir: str | Path | None = None,
) -> list[PreparedSplit]:
    """Prepare the stores that ``python -m monai.bundle run`` of a bundle's training would prepare; none that exists.

    An interrupted preparation goes on where it was. For a chain of stages the stage of the manifest's modality counts.

    Args:
        bundle: folder of the bundle.
        manifest: the JSON file.
        store_dir: folder of all stores, the same as the training's; None: the bundle's own.
        settings: keys of the training config to set, nested ones with ``#``. Give what the training gets, as far as it
            concerns the data: ``preparation``, ``input_shape``, ``vocabulary`` or ``init_weights`` (whose vocabulary
            texts are written with), ``seed``.
        overlays: configs to merge over train.json, such as "demo".
        dataset_dir: folder that the manifest's paths start from; None: the manifest's own.

    Returns:
        one row per split.

    Raises:
        InputError: no such bundle, an unknown setting, a manifest that does not fit the bundle, too many bad items, or
            a full disk.
    """
    parser = bundle_parser(bundle, manifest, store_dir, settings, overlays=overlays, dataset_dir=dataset_dir)
    folder = Path(resolved(parser, "store_dir"))
    return [_prepared(parser, split, folder) for split in bundle_splits(parser)]


def bundle_parser(
    bundle: str | Path,
    manifest: str | Path,
    store_dir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    overlays: Sequence[str] = (),
    dataset_dir: str | Path | None = None,
) -> Any:
    """The training config of a bundle as MONAI's ``ConfigParser``, its ``initialize`` steps done; arguments as above.

    Raises:
        InputError: no such bundle, or an unknown setting.
    """
    files = _config_files(Path(bundle), overlays)
    given: dict[str, Any] = {"data_manifest": str(Path(manifest).absolute())}
    given |= {} if store_dir is None else {"store_dir": str(Path(store_dir).absolute())}
    given |= {} if dataset_dir is None else {"dataset_dir": str(Path(dataset_dir).absolute())}
    stage = Path(bundle) / "configs" / "stage.json"
    if stage.is_file():
        given = _stage_settings(files, manifest) | given
        files = [stage]
    workflow = _workflow(files, {**given, **(settings or {})})
    with told_plainly():
        workflow.initialize()  # refuses unknown settings, registers modalities, fixes the bundle's folder
    return workflow.parser


def _config_files(bundle: Path, overlays: Sequence[str]) -> list[Path]:
    files = [bundle / "configs" / f"{name}.json" for name in ("train", *overlays)]
    for file in files:
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json"))) or "none"
            raise InputError(f"{file}: no such config; {bundle} has {known}. Give the folder of a bundle that trains.")
    return files


def _stage_settings(files: Sequence[Path], manifest: str | Path) -> dict[str, Any]:
    """What a chain sets in the stage of the manifest's modality."""
    from monai.bundle import ConfigParser

    chain = ConfigParser.load_config_files([str(file) for file in files])
    modality = read_json(manifest).get("modality")
    name = modality.get("name") if isinstance(modality, Mapping) else modality
    values = {key: chain[key] for key in CHAIN_KEYS if chain.get(key) is not None}
    for entry in chain.get("stages") or ():
        if isinstance(entry, Mapping) and entry.get("modality") in (name, modality):
            values |= {key: entry[key] for key in CHAIN_ENTRY_KEYS if key in entry}
    return values | {"modality": modality}


def _workflow(files: Sequence[Path], overrides: Mapping[str, Any]) -> Any:
    from monai.bundle import ConfigWorkflow

    from medcoss_components.zoo.verify_subject import quiet

    with quiet(), _settable():  # MONAI says that there is no logging file
        return ConfigWorkflow(
            config_file=[str(file) for file in files], workflow_type="train", logging_file=False, **overrides
        )


@contextmanager
def _settable() -> Iterator[None]:
    """MONAI fails with what it stumbles over when a nested key names something that the config has not."""
    try:
        yield
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"set: a nested key does not fit the training config ({type(error).__name__}: {error}). A setting that is "
            "null there has no keys: give the whole of it, such as --set preparation=\"{'spacing': [2, 1, 1]}\"."
        ) from error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Raise the error that a user can act on instead of MONAI's around it; others pass as they are."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | OSError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None


def resolved(parser: Any, key: str) -> Any:
    """The value of a key of a config, references and expressions resolved.

    Raises:
        InputError: what a part that had to be built for it raised.
    """
    with told_plainly():
        return parser.get_parsed_content(key)


def bundle_splits(parser: Any) -> list[str]:
    """Splits that a training config reads.

    Raises:
        InputError: it reads no data set.
    """
    found = [split for split, key in DATASETS.items() if parser.get(key) is not None]
    if not found:
        raise InputError(f"bundle: its training config has none of the parts {', '.join(DATASETS.values())}.")
    return found


def _prepared(parser: Any, split: str, store_dir: Path) -> PreparedSplit:
    before = {path.name for path in store_dir.iterdir()} if store_dir.is_dir() else set()
    started = time.monotonic()
    dataset = resolved(parser, DATASETS[split])
    if dataset is None:
        return PreparedSplit(split)
    store = getattr(dataset, "store", dataset)  # a task's data set is a choice out of a store
    report = store.report
    return PreparedSplit(
        split,
        kind="cases" if isinstance(store, CaseStore) else "samples",
        samples=len(dataset),
        store=store.path,
        stored=len(store),
        bytes=folder_bytes(store.path),
        left_out=tuple((entry["id"], entry["reason"]) for entry in report["bad_items"]),
        constant=report.get("constant_samples_left_out", 0),
        made=store.path.name not in before,
        seconds=round(time.monotonic() - started, 1),
    )


def describe_prepared(rows: Sequence[PreparedSplit], *, shown: int = 3) -> list[str]:
    """What was prepared, for the terminal; of the items left out, the first few of each split.

    Args:
        rows: of :func:`prepare_for_bundle`.
        shown: items left out that are named.
    """
    lines, seen = [], dict[Path, str]()
    for row in rows:
        if row.store is None:
            lines.append(f"{row.split:<10}  no items in the manifest")
            continue
        if row.store in seen:
            lines.append(f"{row.split:<10}  {row.samples} {row.kind} of the store of {seen[row.store]}")
            continue
        seen[row.store] = row.split
        state = f"made in {row.seconds:g} s" if row.made else "was there"
        lines.append(
            f"{row.split:<10}  {row.samples} of {row.stored} {row.kind}, {size_text(row.bytes)}, {state}: {row.store}"
        )
        lines += [f"left out: {name}: {reason}" for name, reason in row.left_out[:shown]]
        if len(row.left_out) > shown:
            lines.append(f"left out: {len(row.left_out) - shown} more, all in {row.store / 'report.json'}")
        if row.constant:
            lines.append(f"left out: {row.constant} samples whose values are all equal")
    return [*lines, _sum_line(rows)]


def _sum_line(rows: Sequence[PreparedSplit]) -> str:
    made = {row.store: row.bytes for row in rows if row.made}
    if not made:
        return "nothing to do: every store of this manifest, bundle and settings is there"
    return f"{len(made)} {'store' if len(made) == 1 else 'stores'} made, {size_text(sum(made.values()))}"
