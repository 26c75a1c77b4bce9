"""Cases of an input as a data set: each is read and prepared as in training, or says why it cannot be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medcoss_components.data.cases import CaseGeometry, case_settings, prepare_case, resolve_case_preparation
from medcoss_components.data.detection import detection_layer
from medcoss_components.data.manifest import Item
from medcoss_components.data.modalities import Modality, get_modality
from medcoss_components.data.plane_geometry import PlaneGeometry, plane_geometry
from medcoss_components.data.preparation import (
    classification_layer,
    encode_texts,
    image_samples,
    resolve_preparation,
    volume_samples,
)
from medcoss_components.data.readers import read_image, read_volume
from medcoss_components.data.readers_common import ImageData, VolumeData
from medcoss_components.data.readers_series import read_dicom_files
from medcoss_components.errors import InputError
from medcoss_components.inference.discovery import CaseSource, find_cases, without_paths
from medcoss_components.text.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from medcoss_components.text.vocabulary import Vocabulary

KINDS = ("classification", "segmentation", "detection")
BATCH_SIZES = {1: 32, 2: 8, 3: 1}
"""Dimension -> cases that are taken at once; segmentation takes one."""


@dataclass(frozen=True, kw_only=True)
class InferenceCase:
    """A case that was read and prepared, or could not be.

    Args:
        source: where it comes from.
        raw: stored values: classification (n, *stored_shape), n samples of the case; segmentation (1, C, *S);
            detection (1, *stored_shape). None when it failed.
        geometry: segmentation: the way back to the source.
        plane: detection: the same.
        error: why it could not be read; None when it could.
    """

    source: CaseSource
    raw: torch.Tensor | None = None
    geometry: CaseGeometry | None = None
    plane: PlaneGeometry | None = None
    error: str | None = None


class InferenceCases(Dataset):
    """Cases found in an input, read one by one when they are asked for.

    Args:
        input: image, volume, DICOM file or folder, table of texts, folder of any of these, or a manifest; see
            :func:`~medcoss_components.inference.discovery.find_cases`.
        modality: name or entry.
        input_shape: of the network; None: the entry's.
        kind: "classification" (cases become samples of the input shape), "segmentation" (whole cases) or "detection"
            (whole pictures in the input shape).
        preparation: the settings of the training, over those of a manifest.
        vocabulary: path or object; text only, and needed there.
        columns: of tables of texts: {"text": column, "id": column}.
        dataset_dir: folder that a manifest's paths count from; None: the manifest's own.
        split: of a manifest.

    Attributes:
        sources: where the cases come from, in order.
        skipped: (source, reason) of what was left out.
        settings: the complete preparation.

    Raises:
        InputError: a wrong argument, or an input without cases.
    """

    def __init__(
        self,
        *,
        input: str | Path,
        modality: str | Mapping[str, Any] | Modality,
        input_shape: tuple[int, ...] | list[int] | None = None,
        kind: str = "classification",
        preparation: Mapping[str, Any] | None = None,
        vocabulary: str | Path | Vocabulary | None = None,
        columns: Mapping[str, str] | None = None,
        dataset_dir: str | Path | None = None,
        split: str = "testing",
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"kind={kind!r}: must be one of {', '.join(KINDS)}.")
        if input is None:
            raise InputError("input: give a file, a folder or a manifest, got None (--input PATH).")
        self.kind, self.root = kind, Path(input)
        self.modality = get_modality(modality, input_shape=input_shape)
        self.vocabulary = _vocabulary(self.modality, vocabulary)
        found = find_cases(input, modality=self.modality, columns=columns, dataset_dir=dataset_dir, split=split)
        self.sources, self.skipped = found.cases, found.skipped
        if kind == "classification":  # volumes are taken whole unless somebody says how to cut them
            layer = classification_layer(self.modality, found.preparation, preparation)
            self.settings = resolve_preparation(self.modality, found.preparation, layer)
        elif kind == "detection":
            layer = detection_layer(self.modality, found.preparation, preparation)
            self.settings = resolve_preparation(self.modality, found.preparation, layer)
        else:
            stored = case_settings(self.modality, found.preparation)
            self.settings = resolve_case_preparation(self.modality, stored, preparation)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> InferenceCase:
        """Read and prepare a case; one that fails says why instead of raising."""
        source = self.sources[position]
        try:
            return self._prepare(source)
        except Exception as error:  # whatever a damaged file does, the other cases go on
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__} while it was prepared"
            paths = [*source.files, *([source.path] if source.path else [])]
            return InferenceCase(source=source, error=without_paths(reason, paths))

    def _prepare(self, source: CaseSource) -> InferenceCase:
        if self.modality.dimension == 1:
            return InferenceCase(source=source, raw=self._tokens(source))
        data = self._read(source)
        if self.kind == "segmentation":
            case = prepare_case(data.array, data.spacing, modality=self.modality, settings=self.settings)
            return InferenceCase(source=source, raw=torch.from_numpy(case.image)[None], geometry=case.geometry)
        options: dict[str, Any] = {"modality": self.modality, "settings": self.settings}
        if self.kind == "detection" and isinstance(data, ImageData):
            size = self.modality.stored_shape[1:]
            plane = plane_geometry(data.array.shape[:2], data.spacing, size=size, settings=self.settings)
            (sample,) = image_samples(data.array, data.spacing, **options)
            return InferenceCase(source=source, raw=torch.from_numpy(sample)[None], plane=plane)
        if isinstance(data, ImageData):
            samples = image_samples(data.array, data.spacing, **options)
        else:
            samples = volume_samples(data.array, data.spacing, **options)
        return InferenceCase(source=source, raw=torch.from_numpy(np.stack(list(samples))))

    def _read(self, source: CaseSource) -> ImageData | VolumeData:
        codes, path = self.modality.dicom_modalities or None, source.path
        if path is None:
            raise InputError("the case has no image file")
        if self.modality.dimension == 2:
            return read_image(path, expected_modality=codes)
        if source.is_dicom:
            return read_dicom_files(source.files, path=path, expected_modality=codes)
        return read_volume(path, expected_modality=codes)

    def _tokens(self, source: CaseSource) -> torch.Tensor:
        if self.vocabulary is None:
            raise InputError("vocabulary: text needs one")
        item = Item(source.id, text=source.text, group=source.id)
        ids, bad = encode_texts([item], modality=self.modality, settings=self.settings, vocabulary=self.vocabulary)
        if bad:
            raise InputError(bad[0])
        return torch.from_numpy(ids.astype(np.int64))


def _vocabulary(modality: Modality, vocabulary: str | Path | Vocabulary | None) -> Vocabulary | None:
    if modality.dimension != 1:
        return None
    if vocabulary is None:
        raise InputError(f"vocabulary: modality {modality.name} is text and needs one, got None. Give the training's.")
    return load_vocabulary(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary


class _Rows(Dataset):
    """Some cases of a data set."""

    def __init__(self, dataset: InferenceCases, rows: list[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> InferenceCase:
        return self.dataset[self.rows[position]]


class InferenceLoader(DataLoader):
    """Lists of cases in order; workers read ahead by one list, so that few volumes are in memory.

    Args:
        dataset: the cases.
        batch_size: cases in a list; None: by kind and dimension (:data:`BATCH_SIZES`).
        num_workers: processes that read ahead; 0 reads in this process, which takes the least memory.
        leave_out: identifiers of cases that are not wanted, because they are finished.
    """

    def __init__(
        self,
        *,
        dataset: InferenceCases,
        batch_size: int | None = None,
        num_workers: int = 0,
        leave_out: Collection[str] = (),
    ) -> None:
        self.cases = dataset
        size = batch_size or (1 if dataset.kind == "segmentation" else BATCH_SIZES[dataset.modality.dimension])
        rows = [row for row, source in enumerate(dataset.sources) if source.id not in leave_out]
        super().__init__(
            _Rows(dataset, rows),
            batch_size=size,
            collate_fn=list,
            num_workers=min(num_workers, len(rows)),
            prefetch_factor=1 if num_workers and rows else None,
        )

    def without(self, finished: Collection[str]) -> InferenceLoader:
        """The same loader without some cases, given by identifier."""
        return InferenceLoader(
            dataset=self.cases, batch_size=self.batch_size, num_workers=self.num_workers, leave_out=finished
        )
