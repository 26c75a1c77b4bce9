"""Step 2 of MUSCLE: one backbone, a head for each task, and losses that remember (METHOD section 9).

W. Liao et al., MUSCLE: Multi-task self-supervised continual learning to pre-train deep models for X-ray images of
multiple body parts, MICCAI 2022.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events

from medcoss_components.continual.memorization import FeatureMemory, WeightAnchor, feature_term
from medcoss_components.continual.strategies import LossTerm
from medcoss_components.engines.multitask_loader import MultiTaskLoader
from medcoss_components.engines.optimisation import autocast
from medcoss_components.engines.task_losses import as_float32, task_of
from medcoss_components.engines.trainer import ResumableTrainer
from medcoss_components.errors import InputError
from medcoss_components.files import sha256_json
from medcoss_components.weights import hash_weights

if TYPE_CHECKING:
    from medcoss_components.data.task_inputs import TaskTransform

logger = logging.getLogger(__name__)

FEATURE_WEIGHT, ANCHOR_WEIGHT = 1e-3, 1e-2
"""lam_f and lam_w, for which the paper gives no numbers; see the docstring of :class:`MultiTaskTrainer`."""


def _warn_of_fresh_batch_norm(backbone: torch.nn.Module) -> None:
    """Frozen batch norms that never saw data normalise nothing."""
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms and all(bool((norm.running_mean == 0).all() and (norm.running_var == 1).all()) for norm in norms):
        logger.warning(
            "freeze_batch_norm: the backbone's batch norms hold no statistics, since nothing was trained before, and "
            "frozen they normalise nothing. Start from step 1 (init_weights), or set freeze_batch_norm to False."
        )


class TaskView(torch.nn.Module):
    """One task of a multi-task network, as evaluators and inferers call a network of that task alone.

    It shares the weights; everything else that the network of a single task has is asked of the task's head.

    Args:
        model: the multi-task network.
        task: name of one of its tasks.
    """

    def __init__(self, model: torch.nn.Module, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    @property
    def modality(self) -> Any:
        return self.model.modality

    def forward(self, images: torch.Tensor) -> Any:
        """(B, C, H, W) -> what the task's head gives."""
        return self.model(images, task=self.task)[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("model", "task"):
                raise
            return getattr(self.model.heads[self.task], name)


class MultiTaskTrainer(ResumableTrainer):
    """Trains one backbone on several tasks in turn, held by cross-task memorization.

    A step on task t minimises L_t + lam_f ||f(x; w) - f_cached(x)||^2 + lam_w ||w - w_previous||^2, see
    :mod:`~medcoss_components.continual.memorization`. The pooled features are those of the very forward pass that
    the task's loss comes from, so that a step costs one pass. They are of the augmented image, the cached ones of
    the plain one: MD-MoCo has made features that flips and small turns change little, and to ask for those of the plain
    image keeps just that. Running statistics of batch norm would be those of the task visited last, so they stay as
    they came: without augmentation, f(x; w0) = f_cached(x) exactly.

    ``state.output`` is that of :class:`~medcoss_components.engines.trainer.ResumableTrainer` with the task's name as
    "modality", so that losses are recorded by task; ``parts`` has "feature" and "anchor" beside the task's loss.

    Of lam_f and lam_w the paper gives no numbers. These were chosen on a small problem, a start and not a finding:
    ResNet-18 at 64 x 64 pixels after 12 epochs of MD-MoCo on 72 synthetic images, three tasks of 24 of them, six
    rounds, two seeds, lam_f in 0 .. 1 and lam_w in 0 .. 1. The mean of AUC, Dice and mAP on 24 images a task was 0.44
    without memorization, 0.43 to 0.45 for all lam_f up to 0.01, 0.42 for 0.1 and 0.37 for 1, where both terms hold the
    backbone back. In the last visits the loss of classification was 2.6 without memorization, 0.003 to 0.008 for
    lam_f = 0.001, and 0.05 to 0.22 for 0.01. lam_w made no difference that exceeds that of the seeds. Both terms are
    sums over their entries (512 features here; a flip alone moved them by 20 to 110 at squared lengths of 570 to 920),
    so a wider backbone asks for smaller numbers.

    Args:
        train_data_loader: the tasks in turn.
        network: ``network(images, task=name) -> (output, pooled)`` with ``backbone``, ``heads`` and
            ``embedding(images, task)``, holding the weights that the run starts from.
        preprocessing: task -> what turns its stored batches into inputs and targets.
        losses: task -> ``(output, targets) ->`` a :class:`~medcoss_components.continual.strategies.LossTerm` or a
            scalar mean over the samples.
        memory: where features are cached; None goes without cross-task memorization, as muscle-- does.
        feature_weight: lam_f; 0 goes without the cached features.
        anchor_weight: lam_w; 0 goes without the anchor.
        freeze_batch_norm: whether the backbone's batch norm keeps statistics and affine values.
        max_gradient_norm: gradient norm is clipped to this; None does not clip.
        options: those of :class:`~medcoss_components.engines.trainer.ResumableTrainer`, among them ``device``,
            ``max_epochs`` (rounds), ``optimizer`` (a head whose task has no turn gets no gradient and is left alone)
            and ``accumulation_steps`` (a visit closes its last step). Losses are float32 in every precision.

    Raises:
        InputError: a task without preprocessing, loss or head, or a weight that is no finite number of at least 0.
    """

    kind = "multitask"

    def __init__(
        self,
        *,
        train_data_loader: MultiTaskLoader,
        network: torch.nn.Module,
        preprocessing: Mapping[str, TaskTransform],
        losses: Mapping[str, Callable[[Any, Any], LossTerm | torch.Tensor]],
        memory: FeatureMemory | None = None,
        feature_weight: float = FEATURE_WEIGHT,
        anchor_weight: float = ANCHOR_WEIGHT,
        freeze_batch_norm: bool = True,
        max_gradient_norm: float | None = 12.0,
        **options: Any,
    ) -> None:
        self.preprocessing, self.losses = dict(preprocessing), dict(losses)
        weights = _checked("feature_weight", feature_weight), _checked("anchor_weight", anchor_weight)
        self.feature_weight, self.anchor_weight = (0.0, 0.0) if memory is None else weights
        self.memory = memory if self.feature_weight > 0 else None
        given = {"heads": network.heads, "preprocessing": self.preprocessing, "losses": self.losses}
        _check_tasks(train_data_loader.tasks, given)
        self.freeze_batch_norm = freeze_batch_norm
        if freeze_batch_norm:
            _warn_of_fresh_batch_norm(network.backbone)
            network.backbone.freeze_batch_norm(True)
        self.anchor = WeightAnchor(network.backbone)
        super().__init__(
            train_data_loader=train_data_loader, network=network, max_gradient_norm=max_gradient_norm, **options
        )
        self.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Any) -> None:
        """Where nobody has filled the memory, the weights that training starts with do."""
        if self.memory is not None and not all(task in self.memory for task in self.data_loader.tasks):
            self.fill_memory()

    def fill_memory(self, batch_size: int = 64) -> None:
        """Cache the features of all tasks' images with the weights as they are; files that are there are opened."""
        if self.memory is None:
            return
        weights = hash_weights(self.model.backbone.state_dict())
        for task, dataset in self.data_loader.datasets.items():
            self.memory.fill(
                task,
                count=len(dataset),
                key=self._feature_key(task, weights),
                embed=partial(self.plain_features, task),
                batch_size=batch_size,
            )

    @torch.no_grad()
    def plain_features(self, task: str, rows: np.ndarray) -> torch.Tensor:
        """Pooled features (n, D) float32 of images without augmentation, in eval mode, with the weights as they are."""
        raw = torch.from_numpy(plain_samples(self.data_loader.datasets[task], rows))
        inputs = self.preprocessing[task].evaluation(raw, self.state.device)
        was_training = self.model.training
        self.model.eval()
        with autocast(self.precision, self.state.device):
            pooled = self.model.embedding(inputs, task).float()
        self.model.train(was_training)
        return pooled

    def _feature_key(self, task: str, weights: str) -> str:
        """Hash of all that decides a task's features."""
        transform, dataset = self.preprocessing[task], self.data_loader.datasets[task]
        kind = task_of(dataset)  # decides the output stride
        shape = list(dataset.modality.input_shape)
        return sha256_json([weights, dataset.key, shape, transform.intensity, kind, self.precision])

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        return super()._iteration(engine, {**batchdata, "modality": batchdata["task"]})

    def _accumulation_place(self) -> tuple[bool, bool, int]:
        """As for every trainer, but windows begin anew with a visit, whose first weights are the anchor."""
        here, steps = self.data_loader.place(self.state.iteration - 1), self.accumulation_steps
        window = min(steps, here.length - here.place // steps * steps)
        return here.place % steps == 0, here.place % steps == window - 1, window

    def loss_term(self, batch: dict[str, Any]) -> LossTerm:
        task = batch["task"]
        if self.anchor_weight > 0:
            self.anchor.enter(batch["visit"])
        inputs, targets = self.preprocessing[task].training(batch, self.state.device)
        with autocast(self.precision, self.state.device):
            output, pooled = self._forward(inputs, task=task)
        term = self.task_term(task, output, targets, len(inputs))
        return replace(term, added=(*term.added, *self._memorization(batch, pooled)))

    def task_term(self, task: str, output: Any, targets: Any, count: int) -> LossTerm:
        """The task's own loss of ``count`` samples."""
        loss = self.losses[task](as_float32(output), targets)
        if isinstance(loss, LossTerm):
            return loss
        kind = task_of(self.data_loader.datasets[task])
        return LossTerm(kind, loss * count, torch.tensor(float(count), device=loss.device))

    def _memorization(self, batch: Mapping[str, Any], pooled: torch.Tensor) -> list[LossTerm]:
        terms = []
        if self.memory is not None:
            cached = self.memory.rows(batch["task"], batch["indices"])
            terms.append(feature_term(pooled, cached.to(pooled.device), self.feature_weight))
        if self.anchor_weight > 0:
            terms.append(self.anchor.term(self.anchor_weight))
        return terms


def plain_samples(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Stored images (n, *stored_shape) of some rows of a task's data.

    Of a case larger than the input the window in its middle, since cases differ in size; X-rays are prepared to the
    input's size, so that it is the whole image.
    """
    if hasattr(dataset, "gather"):
        return dataset.gather(rows)
    window = dataset.modality.input_shape[1:]
    images = []
    for row in np.asarray(rows).tolist():
        start = [(size - length) // 2 for size, length in zip(dataset.shape(row), window, strict=True)]
        images.append(dataset.window(row, start, window)[0])
    return np.stack(images)


def _checked(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} must be a finite number of at least 0, received {value}")
    return float(value)


def _check_tasks(tasks: Sequence[str], given: Mapping[str, Any]) -> None:
    """See that network, preprocessing and losses know every task."""
    for name, entries in given.items():
        for task in tasks:
            if task not in entries:
                raise InputError(f"{name}: nothing for task {task!r}, only for {', '.join(entries) or 'none'}")
