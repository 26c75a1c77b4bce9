"""Masks for cases, in the geometry of their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SlidingWindowInferer

from medcoss_components.data.cases import CaseGeometry
from medcoss_components.data.readers_source import SourceGrid, source_grid
from medcoss_components.engines.optimisation import autocast
from medcoss_components.errors import InputError
from medcoss_components.files import is_disk_full
from medcoss_components.inference.cases import InferenceCase, InferenceLoader
from medcoss_components.inference.dicom_seg import dicom_seg_available, require_dicom_seg, write_dicom_seg
from medcoss_components.inference.discovery import CaseSource, without_paths
from medcoss_components.inference.outputs import label_map, mask_files, told_otherwise, write_nifti_mask, write_png_mask
from medcoss_components.inference.overlays import fullest_plane, write_overlay
from medcoss_components.inference.predictor import Predictor, Row
from medcoss_components.inference.windows import WindowPlan, predicted_planes
from medcoss_components.progress import progress

FORMATS = {2: ("png", "dicom_seg"), 3: ("nifti", "dicom_seg")}
"""Dimension -> formats of masks."""


class SegmentationPredictor(Predictor):
    """Writes masks in source geometry, a table of sizes and pictures with outlines.

        predictions.csv  predictions.json  masks/<id>.nii.gz | .png | .dcm  overlays/<id>.png

    A whole case is predicted window by window in bounded memory, its probabilities are brought back to the grid of the
    file and cut at ``threshold``. Regions that are nested or disjoint share one label map with their mask values, see
    :func:`~medcoss_components.inference.outputs.label_map`; others get a file each, ``<id>_<region>``. Sizes in the
    table and segments of DICOM are of each region's own mask; ``note`` counts what a label map tells differently.

    Args:
        regions: name -> mask values, as in training.
        threshold: probability above which a voxel belongs to a region.
        overlay: whether pictures are written.
        formats: "auto", or a list out of nifti (volumes), png (images) and dicom_seg (DICOM input; needs highdicom).
            auto: nifti or png, and for DICOM input also dicom_seg where highdicom is installed and the source has what
            it refers to (else the column ``note`` says what is missing).
        options: those of :class:`~medcoss_components.inference.predictor.Predictor` but ``settings``.

    Raises:
        InputError: cases of another kind, an unknown format, highdicom missing though asked for, or a threshold
            outside 0 .. 1.
    """

    task = "segmentation"

    def __init__(
        self,
        *,
        val_data_loader: InferenceLoader,
        regions: Mapping[str, Any],
        inferer: Inferer | None = None,
        threshold: float = 0.5,
        overlay: bool = True,
        formats: str | Sequence[str] = "auto",
        **options: Any,
    ) -> None:
        self._check_cases(val_data_loader)
        if not 0 < threshold < 1:
            raise InputError(f"threshold={threshold}: must be above 0 and below 1.")
        self.regions, self.threshold, self.overlay = dict(regions), float(threshold), overlay
        self.axes = val_data_loader.cases.modality.dimension
        self.formats, self.choose_formats = chosen_formats(formats, self.axes), formats == "auto"
        settings = {"regions": self.regions, "threshold": threshold, "formats": list(self.formats), "overlay": overlay}
        settings["inferer"] = _described(inferer)
        super().__init__(val_data_loader=val_data_loader, settings=settings, inferer=inferer, **options)

    def predict(self, cases: list[InferenceCase]) -> Iterable[Row]:
        for case in cases:
            if case.raw is None or case.geometry is None:
                raise InputError("the case was not prepared for segmentation")
            excess = self._excess(case.raw[0])
            masks = self._masks(excess, case.geometry)
            if self.overlay:
                self._picture(case.source.id, case.raw[0], excess, masks, case.geometry)
            note = self._write_masks(case.source, masks)
            yield {**self._sizes(masks, case.geometry), "note": note}

    def _excess(self, raw: torch.Tensor) -> torch.Tensor:
        """(K, *S) float16 on the CPU: probability above the threshold, in prepared geometry.

        The difference is kept, since float16 is most exact near 0, where it is decided.
        """
        plan = self._plan(raw)
        if plan is None:
            logits = self.outputs(self.inputs(raw[None]))[0]
            self._check(logits)
            return (logits.sigmoid_() - self.threshold).half().cpu()
        output = torch.empty(len(self.regions), *raw.shape[1:], dtype=torch.float16)
        total = len(plan.windows(raw.shape[1:]))
        with progress(description="Windows", total=total, unit="window", leave=False, delay=2) as bar:
            for first, planes in predicted_planes(raw, self._window_logits, plan, advance=bar.update):
                output[:, first : first + planes.shape[1]] = planes.sigmoid_() - self.threshold
        return output

    def _plan(self, raw: torch.Tensor) -> WindowPlan | None:
        """How to slide over the case; None leaves it to the inferer."""
        if type(self.inferer) is not SlidingWindowInferer:
            return None
        plan = WindowPlan.of(self.inferer, raw.ndim - 1)
        fits = all(side <= length for side, length in zip(plan.roi, raw.shape[1:], strict=True))
        return plan.covering(raw.shape[1:]) if fits else None

    def _window_logits(self, raw: torch.Tensor) -> torch.Tensor:
        inputs = self.inputs(raw)
        with autocast(self.precision, self.state.device):
            logits = self.network(inputs)
        return self._check(logits.float())

    def _check(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[-self.axes - 1] != len(self.regions):
            raise InputError(
                f"regions: {len(self.regions)} names for a network with {logits.shape[-self.axes - 1]} outputs."
            )
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the network's output is not finite; check the weights, or try precision float32")
        return logits

    def _masks(self, excess: torch.Tensor, geometry: CaseGeometry) -> np.ndarray:
        """(K, *source_shape) bool; one region in floating point at a time."""
        masks: np.ndarray = np.empty((len(excess), *geometry.source_shape), bool)
        for number in range(len(excess)):
            masks[number] = geometry.restore(excess[number : number + 1])[0].numpy() > 0
        return masks

    def _sizes(self, masks: np.ndarray, geometry: CaseGeometry) -> Row:
        """Voxels (pixels) of each region and their volume in ml (area in mm2), None where no spacing is known."""
        counted, unit, scale = ("voxels", "volume_ml", 1e-3) if self.axes == 3 else ("pixels", "area_mm2", 1.0)
        step = None if geometry.source_spacing is None else float(np.prod(geometry.source_spacing)) * scale
        row: Row = {}
        for name, mask in zip(self.regions, masks, strict=True):
            count = int(np.count_nonzero(mask))
            row[f"{counted}/{name}"] = count
            row[f"{unit}/{name}"] = None if step is None else round(count * step, 4)
        return row

    def _write_masks(self, source: CaseSource, masks: np.ndarray) -> str:
        """Write all formats; returns what a reader of the table should know."""
        grid = self._grid(source, masks)
        folder, notes = self.output_dir / "masks", []
        for name, mask in mask_files(masks, self.regions, source.id):
            if "nifti" in self.formats:
                write_nifti_mask(folder / f"{name}.nii.gz", mask, grid)
            if "png" in self.formats:
                write_png_mask(folder / f"{name}.png", mask)
        if {"nifti", "png"} & set(self.formats) and (counts := told_otherwise(masks, self.regions)):
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            notes.append(f"one value a voxel: the label map differs from the regions' own masks in {listed} voxels")
        if "dicom_seg" in self.formats:
            notes.append(self._write_dicom(source, masks, grid))
        return "; ".join(note for note in notes if note)

    def _write_dicom(self, source: CaseSource, masks: np.ndarray, grid: SourceGrid) -> str:
        """A segmentation for DICOM input; where nobody asked for it in particular, doing without is only noted."""
        if not source.is_dicom:
            if len(self.formats) > 1:
                return ""
            raise InputError("the case is no DICOM; dicom_seg refers to DICOM instances. Add format nifti or png.")
        try:
            path = self.output_dir / "masks" / f"{source.id}.dcm"
            write_dicom_seg(path, masks, grid=grid, regions=list(self.regions))
        except InputError as error:
            if not self.choose_formats or is_disk_full(error):
                raise
            return f"no DICOM segmentation: {without_paths(str(error), source.files)}"
        return ""

    def _grid(self, source: CaseSource, masks: np.ndarray) -> SourceGrid:
        if self.axes == 3 and source.path is not None:
            return source_grid(source.path, source.files)
        rows, columns = masks.shape[1:]
        return SourceGrid(shape=(columns, rows, 1), affine=np.eye(4), frames=tuple((file, 0) for file in source.files))

    def _picture(
        self, name: str, raw: torch.Tensor, excess: torch.Tensor, masks: np.ndarray, geometry: CaseGeometry
    ) -> None:
        """Images in source geometry; of volumes the fullest plane of the prepared grid, without padding."""
        path, names = self.output_dir / "overlays" / f"{name}.png", list(self.regions)
        if self.axes == 2:
            picture = geometry.restore(raw.float()).numpy()
            spacing = geometry.source_spacing or (1.0, 1.0)
            write_overlay(path, picture=picture, masks=masks, names=names, spacing=(spacing[0], spacing[1]))
            return
        raw, found = geometry.crop(raw), (geometry.crop(excess) > 0).numpy()
        plane = fullest_plane(found)
        of_source = int((plane + 0.5) * geometry.source_shape[0] / found.shape[1])
        write_overlay(
            path,
            picture=self._shown(raw[:, plane]),
            masks=found[:, plane],
            names=names,
            spacing=(geometry.spacing[1], geometry.spacing[2]),
            caption=f"plane {of_source + 1} of {geometry.source_shape[0]}, feet to head",
        )

    def _shown(self, picture: torch.Tensor) -> np.ndarray:
        """Stored values within the clip of the network's input, beyond which it sees nothing either."""
        limits = (getattr(self.preprocessing, "intensity", None) or {}).get("clip")
        values = picture.float()
        return (values if limits is None else values.clamp(*limits)).numpy()

    def summary(self) -> Row:
        values = label_map(self.regions).values
        return {"regions": self.regions, "threshold": self.threshold, "mask_values": values or None}


def chosen_formats(formats: str | Sequence[str], dimension: int) -> tuple[str, ...]:
    """Formats of masks for a dimension, "auto" resolved.

    Raises:
        InputError: a format that the dimension does not have, none at all, or dicom_seg without highdicom.
    """
    known = FORMATS[dimension]
    if formats == "auto":
        return known if dicom_seg_available() else known[:1]
    chosen = (formats,) if isinstance(formats, str) else tuple(formats)
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(
            f"formats: {unknown[0]!r} is none of {', '.join(known)} or auto, which {dimension}D masks have."
        )
    if not chosen:
        raise InputError(f"formats: give auto or at least one of {', '.join(known)}, got none.")
    if "dicom_seg" in chosen:
        require_dicom_seg()
    return chosen


def _described(inferer: Inferer | None) -> Row | None:
    """What of an inferer decides the result."""
    if inferer is None:
        return None
    names = ("roi_size", "overlap", "mode", "sigma_scale", "padding_mode")
    return {"name": type(inferer).__name__} | {
        name: value if isinstance(value := getattr(inferer, name), int | float) else _plain(value)
        for name in names
        if hasattr(inferer, name)
    }


def _plain(value: Any) -> Any:
    return (
        str(getattr(value, "value", value)) if isinstance(value, str) or not isinstance(value, Sequence) else [*value]
    )
