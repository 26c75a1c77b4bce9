"""Momentum contrast (He et al. 2020, arXiv 1911.05722), with the head of MoCo v2 (Chen et al. 2020, arXiv 2003.04297).

Axes: B samples, C channels, H rows, W columns, F channels of the backbone, d numbers of a query or key, K keys of the
queue.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from medcoss_components.continual.strategies.base import LossTerm
from medcoss_components.data.task_inputs import TaskTransform
from medcoss_components.data.transforms import INPUT_SCALES
from medcoss_components.errors import InputError

if TYPE_CHECKING:
    from medcoss_components.data.modalities import Modality

CONTRASTIVE, ACCURACY = "contrastive", "accuracy"
"""Kinds of what a step reports: the loss, and the share of samples whose key beats the queue."""


class ContrastiveModel(nn.Module):
    """Backbone and projection head: the query network of momentum contrast, and all that is kept of it.

    Args:
        backbone: see :func:`~medcoss_components.networks.xray_backbones.xray_backbone`: gives an object with
            ``pooled`` (B, F) for images, and has ``width`` (F) and ``modality``.
        dimension: d.
        mlp: two layers with F hidden channels and a ReLU (MoCo v2) instead of one linear layer.

    Raises:
        InputError: when ``dimension`` is below 1.

    Attributes:
        modality: entry with the input shape of the backbone.
    """

    def __init__(self, *, backbone: nn.Module, dimension: int = 128, mlp: bool = True) -> None:
        super().__init__()
        if dimension < 1:
            raise InputError(f"dimension must be at least 1, received {dimension}")
        self.dimension = int(dimension)
        self.modality: Modality = backbone.modality
        self.backbone = backbone
        width = int(backbone.width)
        layers: list[nn.Module] = [nn.Linear(width, width), nn.ReLU()] if mlp else []
        self.head = nn.Sequential(*layers, nn.Linear(width, self.dimension))
        self.normalises = any(isinstance(module, _BatchNorm) for module in self.modules())

    def forward(self, images: Tensor, *, groups: int = 1) -> Tensor:
        """Project images on the unit sphere.

        Args:
            images: (B, C, H, W) as the network reads them.
            groups: batch normalisation in training mode counts over this many consecutive parts of the batch, one by
                one; a network without it, or in evaluation mode, does not depend on them.

        Returns:
            (B, d) float32 of length 1.
        """
        parts = images.tensor_split(groups) if self.normalises and self.training else (images,)
        pooled = torch.cat([self.backbone(part).pooled for part in parts])
        return functional.normalize(self.head(pooled).float(), dim=1)


class PooledFeatures(nn.Module):
    """What :func:`~medcoss_components.engines.embedding.embed_source` and
    :class:`~medcoss_components.engines.embedding.EmbeddingEvaluator` ask of a network: one vector per image, here the
    pooled features of a backbone.

    Args:
        network: has ``backbone`` and ``modality``, such as :class:`ContrastiveModel`.
        intensity: as the network was trained, see :class:`~medcoss_components.data.task_inputs.TaskTransform`.

    Raises:
        InputError: for an unknown intensity.
    """

    def __init__(self, network: nn.Module, intensity: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.network = network
        self.modality: Modality = network.modality
        self.scaling = TaskTransform(modality=self.modality, intensity=intensity, augmentation="none")
        self.sizes = SimpleNamespace(width=int(network.backbone.width))  # of embeddings, also where there are none

    def embedding(self, modality: Any, inputs: Tensor, *, padding_mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1], as :func:`~medcoss_components.data.transforms.to_model_input` gives them, ->
        (B, F) float32."""
        if self.scaling.intensity is not None:  # which is told in stored values
            stored = inputs[:, : self.modality.stored_channels] / INPUT_SCALES[self.modality.intensity]
            inputs = self.scaling.evaluation(stored.round(), inputs.device)
        return self.network.backbone(inputs).pooled.float()


class MomentumContrast(nn.Module):
    """The other half of momentum contrast: key network, queue and loss.

    A query q is compared with the key k of another view of the same image and with the K keys n_j of earlier batches
    (InfoNCE, van den Oord et al. 2018): L = -log(exp(q k / T) / (exp(q k / T) + sum_j exp(q n_j / T))).

    Its state travels in the resume checkpoint and is thrown away after the training.

    *Shuffled normalisation.* Were a query and its key normalised by the statistics of one batch, these would tell them
    apart from the keys of earlier batches, and the network would learn that instead of the image. He et al. shuffle
    keys among GPUs, which normalise on their own. One process has nothing to shuffle among: here both networks
    normalise parts of a batch on their own (``groups``), and the keys come in another order
    (:class:`~medcoss_components.data.contrastive_loader.ContrastiveLoader` draws it), so that the images that a key is
    normalised with are not those of its query. With one group and one process, nothing is shuffled among.

    Args:
        network: the query network with the weights that the run starts from; the key network begins as its copy.
        queue_size: K; a number beyond the samples of the data set makes older keys of an image its negatives.
        momentum: m of key = m * key + (1 - m) * query.
        temperature: T.
        generator: of the keys that the queue begins with, random directions.

    Attributes:
        key: the key network; nothing of it requires a gradient.
        queue: (K, d) float32 of length 1.
        pointer: where the next key goes.

    Raises:
        InputError: when a number is out of range.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        network: ContrastiveModel,
        *,
        queue_size: int = 24_576,
        momentum: float = 0.999,
        temperature: float = 0.07,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if queue_size < 1:
            raise InputError(f"queue_size must be at least 1 key, received {queue_size}")
        if not 0 <= momentum <= 1:
            raise InputError(f"momentum must be in [0, 1], received {momentum}")
        if temperature <= 0:
            raise InputError(f"temperature must be above 0, received {temperature}")
        self.momentum, self.temperature = momentum, temperature
        self.key = copy.deepcopy(network).requires_grad_(False)
        queue = functional.normalize(torch.randn(queue_size, network.dimension, generator=generator), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def start(self, network: nn.Module) -> None:
        """Make the key network a copy of the query network as it is now."""
        self.key.load_state_dict(network.state_dict())

    @torch.no_grad()
    def keys(self, images: Tensor, *, groups: int = 1) -> Tensor:
        """Keys (B, d) float32 of (B, C, H, W) images, without gradient, normalised by their own batch."""
        return self.key.train()(images, groups=groups)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, 1 + K) similarities over T: with the own key, then with the queue."""
        own = (queries * keys).sum(dim=1, keepdim=True)
        return torch.cat([own, queries @ self.queue.T], dim=1) / self.temperature

    def terms(self, queries: Tensor, keys: Tensor) -> tuple[LossTerm, LossTerm]:
        """InfoNCE of the queries, and how many keys beat the whole queue, both summed over B.

        Args:
            queries, keys: (B, d) float32, row by row of one image.
        """
        logits = self.logits(queries, keys)
        count = torch.tensor(float(len(logits)), device=logits.device)
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        loss = functional.cross_entropy(logits, target, reduction="sum")
        hits = (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().sum()
        return LossTerm(CONTRASTIVE, loss, count), LossTerm(ACCURACY, hits.detach(), count)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the key network's parameters towards the query network's; call it after the optimiser's step.

        The running statistics of the key network are its own; training does not read them.
        """
        for key, query in zip(self.key.parameters(), network.parameters(), strict=True):
            key.lerp_(query.detach(), 1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put (B, d) keys of a global batch in place of the oldest ones; of more than K the last K.

        Call it after the backward pass, which reads the queue.
        """
        size = len(self.queue)
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:]
        self.pointer.copy_((self.pointer + len(keys)) % size)


def feature_spread(vectors: Tensor) -> Tensor:
    """How far vectors are spread over directions: 0 when all point one way (collapse), 1 when they are spread evenly.

    sqrt(D) times the mean over the D dimensions of the standard deviation of the vectors at length 1 (after Chen and He
    2021, arXiv 2011.10566, section 4). Features behind a ReLU, which are never negative, stay below 1.

    Args:
        vectors: (N, D) floats.

    Returns:
        float32 scalar.
    """
    directions = functional.normalize(vectors.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * directions.shape[1] ** 0.5
