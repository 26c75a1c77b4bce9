"""``medcoss manifest build``, and what follows it: ``show`` and ``prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medcoss_components import cli_prepare, cli_show

if TYPE_CHECKING:
    from medcoss_components.data.manifest_assembly import Built

_SHOWN, _NAMED = 20, 3


def manifest_build(
    context: typer.Context,
    root: Annotated[Path, typer.Argument(help="Folder of the files; of texts also one file.")],
    out: Annotated[Path, typer.Argument(help="Manifest to write (JSON); paths in it count from its folder.")],
    kind: Annotated[
        str | None, typer.Option("--from", help="Own files: images, volumes (nifti), dicom or texts (csv).")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Of own files: report, xray, ct, mri, pathology, ... (registered).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Published data set instead; `medcoss manifest datasets` lists them.")
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(help="Of a data set: published, patients or as_published; default: its recipe's.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(help="Of a data set: name=value of its settings; may be given several times.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Also prepare the stores that this bundle trains on (folder of the bundle).")
    ] = None,
    store_dir: Annotated[Path, typer.Option(help="Folder of these stores.")] = Path("stores"),
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns file, label and, better, patient, body_part; or boxes: a COCO file, a folder of "
            "Pascal VOC files, a CSV with file, left, top, right, bottom, category."
        ),
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks named like the images.")] = None,
    mask_suffix: Annotated[str, typer.Option(help="What masks have behind the image's name, such as _mask.")] = "",
    key_column: Annotated[
        str | None, typer.Option(help="Column that names the files; default: file, series, study, patient or id.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    group_column: Annotated[str | None, typer.Option(help="Column of the patient; default: patient.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that fixes each row's split.")] = None,
    text_column: Annotated[str, typer.Option(help="Of texts.")] = "text",
    id_column: Annotated[str, typer.Option(help="Of texts.")] = "id",
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its bracket in the path is the patient.")
    ] = None,
    split: Annotated[str, typer.Option(help="Percent of training/validation/testing, by patient.")] = "70/10/20",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    duplicates: Annotated[
        str | None, typer.Option(help="Equal contents: refuse (default), drop, or keep (default of texts).")
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Keep items without a label or mask.")] = False,
    series: Annotated[str, typer.Option(help="DICOM volumes: largest axial series of a study, or all.")] = "largest",
    minimum_slices: Annotated[int, typer.Option(help="DICOM volumes: leave shorter series out.")] = 8,
    sort_into: Annotated[
        Path | None, typer.Option(help="Folder for links to DICOM series that share a folder; default: OUT's .files.")
    ] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="Name files as they are: patients in their names are pseudonyms.")
    ] = False,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="File or folder below ROOT to pass over; may be given several times.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the data set; default: from OUT.")] = "",
    data_version: Annotated[str, typer.Option(help="Change it when files change under the same names.")] = "1",
    licence: Annotated[str, typer.Option(help="Terms of the data.")] = "not stated",
    source: Annotated[str, typer.Option(help="Where the data come from.")] = "own data",
    contact_sheet: Annotated[Path | None, typer.Option(help="PNG with some items, to look at.")] = None,
) -> None:
    """Make a manifest of a folder: a published data set, or one's own files with their labels or masks.

    Patients are never split, and their identifiers are hashed; where they stand in names of files, the manifest names
    links in OUT's .files. What was left out stands, with reasons, in OUT's .build.json.

    Example: medcoss manifest build films films/manifest.json --from images --modality xray --labels films/labels.csv

    Example: medcoss manifest build LiTS lits/manifest.json --dataset lits --bundle bundles/liver_tumor_ct_segmentation
    """
    if dataset is not None:
        _refuse_own_options(context)
        shares = None if _is_default(context, "split") else _shares(split)
        built = _build_dataset(dataset, root, out, split_by, shares, seed, set or [], workers)
        _finish(built, contact_sheet, seed, bundle, store_dir, workers)
        return
    from medcoss_components.data.manifest_building import OwnData, build_manifest
    from medcoss_components.errors import InputError

    if kind is None or modality is None:
        raise InputError(
            "manifest build: give --dataset NAME, or, for files of one's own, --from KIND and --modality NAME."
        )
    written = tuple(filter(None, (contact_sheet,)))
    data = OwnData(
        root=root, kind=kind, modality=modality, labels=labels, masks=masks, mask_suffix=mask_suffix,
        key_column=key_column, label_column=label_column, group_column=group_column, split_column=split_column,
        text_column=text_column, id_column=id_column, group_pattern=group_pattern, split=_shares(split), seed=seed,
        duplicates=duplicates, unlabelled=unlabelled, series=series, minimum_slices=minimum_slices,
        sort_into=sort_into, keep_names=keep_names, exclude=(*(exclude or ()), *written), name=name,
        version=data_version, licence=licence, source=source,
    )  # fmt: skip
    _finish(build_manifest(data, out), contact_sheet, seed, bundle, store_dir, workers)


_FOR_DATASETS = (
    "context", "root", "out", "dataset", "split_by", "set", "workers", "split", "seed", "contact_sheet", "bundle",
    "store_dir",
)  # fmt: skip


def _is_default(context: typer.Context, name: str) -> bool:
    return str(context.get_parameter_source(name)).endswith("DEFAULT")


def _refuse_own_options(context: typer.Context) -> None:
    from medcoss_components.errors import InputError

    given = [name for name in context.params if name not in _FOR_DATASETS and not _is_default(context, name)]
    if given:
        names = ", ".join(f"--{'from' if name == 'kind' else name.replace('_', '-')}" for name in given)
        raise InputError(f"{names}: only for files of one's own; a data set has recipe and settings (--set).")


def _build_dataset(
    dataset: str,
    root: Path,
    out: Path,
    split_by: str | None,
    shares: tuple[float, float, float] | None,
    seed: int,
    settings: list[str],
    workers: int | None,
) -> Built:
    from medcoss_components.data.dataset_building import build_dataset_manifest

    return build_dataset_manifest(
        dataset,
        root,
        out,
        split_by=split_by,
        shares=shares,
        seed=seed,
        settings=parse_settings(settings),
        workers=workers,
    )


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Settings out of ``name=value`` texts; values are YAML: numbers, lists, null, true.

    >>> parse_settings(["views=[PA, AP]", "limit=null", "spacing=0.5"])
    {'views': ['PA', 'AP'], 'limit': None, 'spacing': 0.5}
    """
    import yaml

    from medcoss_components.errors import InputError

    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"set: must be name=value, got {text!r}.")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"set: the value of {name} is not YAML: {value!r}.") from error
    return settings


def _finish(
    built: Built, contact_sheet: Path | None, seed: int, bundle: Path | None, store_dir: Path, workers: int | None
) -> None:
    """Print what was built, draw the contact sheet, prepare the stores."""
    _print_built(built)
    if contact_sheet is not None:
        _draw_sheet(built, contact_sheet, seed)
    if bundle is not None:
        cli_prepare.prepare_and_print(bundle, built.path, store_dir, workers=workers)


def _shares(text: str) -> tuple[float, float, float]:
    from medcoss_components.errors import InputError

    try:
        training, validation, testing = (float(part) for part in text.split("/"))
    except ValueError:
        raise InputError(f"split: must be three numbers such as 70/10/20, got {text!r}.") from None
    return training, validation, testing


def _print_built(built: Built) -> None:
    from medcoss_components.data.manifest_summary import describe

    print(describe(built.manifest))
    by_reason: dict[str, list[str]] = {}
    for entry in built.left_out:
        by_reason.setdefault(entry.reason, []).append(entry.where)
    for reason, places in list(by_reason.items())[:_SHOWN]:
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        print(f"left out: {', '.join(places[:_NAMED])}{more}: {reason}")
    if len(by_reason) > _SHOWN:
        print(f"left out: for {len(by_reason) - _SHOWN} more reasons, all in {built.path.stem}.build.json")
    for note in built.notes:
        print(f"note: {note}")
    total = sum(built.manifest.counts.values())
    print(f"{built.path}: {total} items, {len(built.left_out)} left out; next: medcoss manifest check {built.path}")


def _draw_sheet(built: Built, path: Path, seed: int) -> None:
    from medcoss_components.tracking.contact_sheet import manifest_sheet, sheet_lines

    for line in sheet_lines(manifest_sheet(built.manifest, path, seed=seed)):
        print(f"contact sheet: {line}")
    print(f"contact sheet: {path} (shows images of the data set; treat it like the data)")


def attach(group: typer.Typer) -> None:
    """Add the commands to the group ``medcoss manifest``."""
    group.command("build")(manifest_build)
    cli_show.attach(group)
    cli_prepare.attach(group)
