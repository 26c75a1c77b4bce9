"""Feature distillation from a frozen copy of the previous stage's encoder (METHOD.md section 5)."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from medcoss_components.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
TeacherMode = Literal["eval", "train"]


class _KeepsItsMode:
    """Mixed into a teacher's class: ``train()`` and ``eval()``, also of a module around it, leave its mode."""

    kept_mode: ClassVar[TeacherMode] = "eval"

    def train(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, self.kept_mode == "train")


class _KeepsTraining(_KeepsItsMode):
    kept_mode = "train"


MODES: dict[str, type[_KeepsItsMode]] = {"eval": _KeepsItsMode, "train": _KeepsTraining}


def frozen_teacher(model: Network, *, mode: TeacherMode = "eval") -> Network:
    """Copy a model into a teacher that never learns.

    The copy shares no storage with ``model``, takes no gradient and stays in its mode even when ``train()`` is called
    on it or on a module that holds it. It is an instance of the model's class, so ``teacher.features(...)`` is called
    as on the model.

    Args:
        model: the network as it stands at the end of the previous stage; give the module inside a DDP wrapper.
        mode: "eval" (no stochastic depth), or "train" for the teacher of the published code, which drops branches.

    Returns:
        The teacher. Call it under ``torch.no_grad()``; its parameters need no gradient in any case.

    Raises:
        InputError: for another mode.
    """
    if mode not in MODES:
        raise InputError(f"mode: must be one of {', '.join(MODES)}, received {mode!r}.")
    teacher = copy.deepcopy(model)
    kind = type(teacher)
    if issubclass(kind, _KeepsItsMode):  # a teacher of a teacher
        kind = kind.__bases__[1]
    teacher.__class__ = type(kind.__name__, (MODES[mode], kind), {"__module__": kind.__module__})
    teacher.requires_grad_(False)
    teacher.zero_grad(set_to_none=True)
    return teacher.train(mode == "train")


@overload
def distillation_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, reduction: Literal["mean"] = "mean"
) -> Tensor: ...


@overload
def distillation_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, reduction: Literal["sum"]
) -> tuple[Tensor, Tensor]: ...


def distillation_loss(
    student: Tensor, teacher: Tensor, *, token_mask: Tensor | None = None, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean squared difference of student and teacher features, METHOD.md section 5.

    L = 1/|V| * sum over (b, n) in V of 1/D * sum over d of (s[b,n,d] - t[b,n,d])^2, V = tokens that count.

    Args:
        student: (B, N, D) features of the learning encoder, any floating dtype; class token included.
        teacher: (B, N, D) features of the frozen encoder for the same inputs and mask noise; detached here.
        token_mask: (B, N) bool or number, True or 1 where the token counts (real text tokens); None counts all.
        reduction: "mean" gives the loss; "sum" gives what ranks or micro-batches add up before dividing.

    Returns:
        "mean": float32 scalar, 0 when no token counts. "sum": (float32 sum over counted tokens of the mean over D,
        float32 number of counted tokens); mean == sum / count.

    Raises:
        InputError: when shapes disagree or the reduction is unknown.

    >>> distillation_loss(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2)).item()
    5.0
    """
    _check_features(student, teacher, token_mask)
    if reduction not in ("mean", "sum"):
        raise InputError(f'reduction: must be "mean" or "sum", received {reduction!r}.')
    difference = student.float() - teacher.detach().float()
    if token_mask is None:
        count = difference.new_tensor(float(student.shape[0] * student.shape[1]))
    else:
        counted = token_mask.to(device=student.device, dtype=torch.bool)
        difference = difference.masked_fill(~counted.unsqueeze(-1), 0.0)
        count = counted.sum().float()
    total = difference.square().mean(dim=-1).sum()
    return (total, count) if reduction == "sum" else total / count.clamp(min=1.0)


def _check_features(student: Tensor, teacher: Tensor, token_mask: Tensor | None) -> None:
    if student.dim() != 3 or student.shape != teacher.shape:
        raise InputError(
            "student and teacher: expected equal shapes (B, N, D), "
            f"received {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if token_mask is not None and token_mask.shape != student.shape[:2]:
        raise InputError(f"token_mask: expected shape {tuple(student.shape[:2])}, received {tuple(token_mask.shape)}.")
