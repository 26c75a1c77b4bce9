"""Reading samples from files when they are asked for, as a dataset for torch's own ``DataLoader``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset


class CutVolumes(Dataset):
    """CT sub-volumes that somebody has cut to the model's size before: one small .nii.gz each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """(1, Z, H, W) float32, HU / 1024 after clipping."""
        volume = nibabel.load(self.paths[index]).get_fdata()
        volume = np.clip(volume.T, -1024, 1024).astype(np.float32) / 1024
        return torch.from_numpy(volume)[None]


class WholeVolumes(Dataset):
    """CT sub-volumes cut from whole volumes when they are asked for: ``depth`` consecutive slices, resized to ``size``.

    Args:
        paths: .nii.gz files of square slices.
        starts: (file number, first slice) of each sample.
        depth: slices of a sample.
        size: (H, W).
    """

    def __init__(self, paths: Sequence[Path], starts: Sequence[tuple[int, int]], depth: int, size: tuple[int, int]):
        self.paths, self.starts, self.depth, self.size = list(paths), list(starts), depth, size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """(1, Z, H, W) float32, HU / 1024 after clipping."""
        number, start = self.starts[index]
        volume = nibabel.load(self.paths[number]).get_fdata()
        slab = torch.from_numpy(volume.T[start : start + self.depth].astype(np.float32))
        slab = F.interpolate(slab[:, None], size=self.size, mode="bilinear", antialias=True)[:, 0]
        return (slab.clip(-1024, 1024) / 1024)[None]


class Radiographs(Dataset):
    """JPEG radiographs: decode, cut the extreme half percents off, resize the shorter side, cut the centre, 3 channels.

    Args:
        paths: picture files.
        size: (H, W) of the model's input.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths, self.size = list(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """(3, H, W) float32 in [0, 1]."""
        with Image.open(self.paths[index]) as image:
            picture = image.convert("L")
        low, high = np.percentile(np.asarray(picture), (0.5, 99.5))
        height, width = self.size
        scale = max(height / picture.height, width / picture.width)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.BILINEAR)
        top, left = (picture.height - height) // 2, (picture.width - width) // 2
        array = np.asarray(picture, dtype=np.float32)[top : top + height, left : left + width]
        array = np.clip((array - low) / (high - low), 0, 1)
        return torch.from_numpy(array).repeat(3, 1, 1)
