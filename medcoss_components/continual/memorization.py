"""Cross-task memorization of MUSCLE (W. Liao et al., MICCAI 2022): what holds the backbone while tasks take turns.

A step on task t minimises (METHOD section 9)

    L = L_t + lam_f * mean over the batch of ||f(x; w) - f_cached(x)||^2 + lam_w * ||w - w_previous||^2

f is the pooled output of the backbone, f_cached that of the backbone as it was before the first step (after MD-MoCo),
w_previous the backbone's weights at the end of the task visited before. All norms are Euclidean, sums and not means
over the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch import nn

from medcoss_components.continual.strategies import LossTerm
from medcoss_components.data.sampler import rank_rows
from medcoss_components.engines.embedding import save_rank_rows
from medcoss_components.errors import InputError
from medcoss_components.progress import progress

FEATURE, ANCHOR = "feature", "anchor"
"""Kinds of the two added loss terms."""
Embed = Callable[[np.ndarray], torch.Tensor]
"""Rows of a data set (n,) int64 -> their pooled features (n, D)."""


class FeatureMemory:
    """Pooled features of all training images of all tasks, made once and never changed.

    One file for each task, ``<task>-<key>.npy`` (N, D) float32 in the order of the data set, read memory-mapped.

    Args:
        folder: where the files lie; several runs may share it, since a file's name tells what it holds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._features: dict[str, np.ndarray] = {}

    def path(self, task: str, key: str) -> Path:
        """The file of a task's features.

        Args:
            key: hash of all that decides the features: weights, data and how they are read.
        """
        return self.folder / f"{task}-{key[:16]}.npy"

    def fill(self, task: str, *, count: int, key: str, embed: Embed, batch_size: int = 64) -> Path:
        """Make a task's features unless their file is there; every rank computes its share (one file system for all).

        Args:
            task: its name.
            count: N, images of its data set.
            key: see :meth:`path`.
            embed: gives the features of some rows.
            batch_size: rows that ``embed`` gets at once.

        Raises:
            InputError: a file that does not hold N features.
        """
        path = self.path(task, key)
        if not path.is_file():
            rows = rank_rows(count, idist.get_rank(), idist.get_world_size())
            save_rank_rows(_embedded(embed, rows, batch_size, f"features of {task}"), path)
        self._features[task] = _opened(path, count)
        return path

    def __contains__(self, task: str) -> bool:
        """Whether a task's features are there."""
        return task in self._features

    def __getitem__(self, task: str) -> np.ndarray:
        """(N, D) float32, memory-mapped, read-only.

        Raises:
            InputError: a task without features.
        """
        if task not in self._features:
            raise InputError(f"task {task!r}: has no cached features; there are those of {sorted(self._features)}.")
        return self._features[task]

    def rows(self, task: str, rows: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Features (n, D) float32 of some rows of a task's data set."""
        return torch.from_numpy(self[task][np.asarray(rows)])


def _embedded(embed: Embed, rows: np.ndarray, batch_size: int, description: str) -> np.ndarray:
    """(n, D) float32 features of the given rows."""
    places = range(0, len(rows), batch_size)
    found = [
        embed(rows[place : place + batch_size]).detach().float().cpu().numpy()
        for place in progress(places, description=description, total=len(places), unit="batch")
    ]
    return np.concatenate(found)


def _opened(path: Path, count: int) -> np.ndarray:
    advice = "Delete the file, it is made again."
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: no file of features ({error}). {advice}") from error
    if features.ndim != 2 or len(features) != count or features.dtype != np.float32:
        raise InputError(
            f"{path}: must hold float32 features of {count} images, holds {features.dtype} of shape {features.shape}. "
            f"{advice}"
        )
    return features


def feature_term(pooled: torch.Tensor, cached: torch.Tensor, weight: float) -> LossTerm:
    """lam_f * ||f(x; w) - f_cached(x)||^2, averaged over the samples.

    Args:
        pooled: (B, D) features of this step, with gradient.
        cached: (B, D) features of the same images.
        weight: lam_f.

    >>> term = feature_term(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 0.5)
    >>> float(term.total / term.count)  # 0.5 * (4 + 2) / 2
    1.5
    """
    distances = (pooled.float() - cached.to(pooled.device)).square().sum(dim=1)
    return LossTerm(FEATURE, weight * distances.sum(), torch.tensor(float(len(pooled)), device=pooled.device))


class WeightAnchor:
    """The backbone's trained parameters as the task visited before has left them.

    Its state belongs into a resume checkpoint: in the middle of a visit the weights have moved.

    Args:
        backbone: its parameters that require a gradient are held; read anew at every call.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.visit: int | None = None
        self.values: dict[str, torch.Tensor] = {}

    def enter(self, visit: int) -> None:
        """Copy the weights when a visit begins; call it before the visit's first step."""
        if visit != self.visit:
            self.values = {name: value.detach().clone() for name, value in self._parameters()}
            self.visit = visit

    def term(self, weight: float) -> LossTerm:
        """lam_w * ||w - w_previous||^2, a penalty with one unit.

        Args:
            weight: lam_w.

        Raises:
            InputError: before the first visit.
        """
        if self.visit is None:
            raise InputError("weight anchor: no visit has begun; call enter() before the first step.")
        parts = [(value.float() - self.values[name].float()).square().sum() for name, value in self._parameters()]
        if parts:
            penalty = weight * torch.stack(parts).sum()
        else:  # a frozen backbone
            penalty = torch.zeros((), device=next(self.backbone.parameters()).device)
        return LossTerm(ANCHOR, penalty, penalty.new_ones(()))

    def state_dict(self) -> dict[str, Any]:
        return {"visit": self.visit, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.visit, self.values = state["visit"], dict(state["values"])

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self.backbone.named_parameters() if value.requires_grad]
