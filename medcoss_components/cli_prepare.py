"""``medcoss manifest prepare``: the stores of a bundle's training, made beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def manifest_prepare(
    path: Annotated[Path, typer.Argument(help="Manifest (JSON).")],
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle that will train on it.")],
    store_dir: Annotated[Path | None, typer.Option(help="Folder of all stores; default: the bundle's own.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder that the items' paths start from.")] = None,
    overlay: Annotated[list[str] | None, typer.Option(help="Config merged over train.json, such as demo.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(help="key=value of the training config; may be given several times.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core where it pays.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Prepare exactly the stores that a bundle's training would, with every core; a second call has nothing to do.

    Give the same --set as to the training where it concerns the data (preparation, input_shape, vocabulary,
    init_weights, seed), and train with --store_dir of this command. An interrupted call goes on where it was.

    Example: medcoss manifest prepare lits/manifest.json --bundle bundles/liver_tumor_ct_segmentation
    --store-dir stores --set preparation#spacing="[2.5,1,1]"
    """
    settings = typed_settings(set or ())
    if workers is not None:
        settings["preparation_workers"] = workers
    options: dict[str, Any] = {"settings": settings, "overlays": tuple(overlay or ()), "dataset_dir": dataset_dir}
    if json:
        from medcoss_components.zoo.bundle_stores import prepare_for_bundle

        print_json([row.to_dict() for row in prepare_for_bundle(bundle, path, store_dir, **options)])
    else:
        prepare_and_print(bundle, path, store_dir, **options)


def prepare_and_print(
    bundle: Path, manifest: Path, store_dir: Path | None = None, *, workers: int | None = None, **options: Any
) -> None:
    """Prepare the stores of a bundle's training and print what there is; also the end of ``medcoss manifest build``.

    Args:
        bundle: its folder.
        manifest: the JSON file.
        store_dir: folder of all stores; None: the bundle's own.
        workers: processes; None: the bundle's setting.
        options: of :func:`~medcoss_components.zoo.bundle_stores.prepare_for_bundle`.
    """
    from medcoss_components.zoo.bundle_stores import describe_prepared, prepare_for_bundle

    if workers is not None:
        options["settings"] = {**(options.get("settings") or {}), "preparation_workers": workers}
    print("\n".join(describe_prepared(prepare_for_bundle(bundle, manifest, store_dir, **options))))


def typed_settings(values: Any) -> dict[str, Any]:
    """``key=value`` texts with the values as MONAI's command line would read them: numbers, lists, None, else text.

    Raises:
        InputError: a text without "=", or a key given twice.
    """
    from fire.parser import DefaultParseValue

    from medcoss_components.zoo.benchmark import parse_settings

    return {key: DefaultParseValue(value) for key, value in parse_settings(values).items()}


def print_json(content: Any) -> None:
    """Print JSON values, indented."""
    from json import dumps

    print(dumps(content, indent=2, ensure_ascii=False))


def attach(group: typer.Typer) -> None:
    """Add the command to the group ``medcoss manifest``."""
    group.command("prepare")(manifest_prepare)
