"""The encoder with a small head that gives one number per class (METHOD.md section 8).

Axes: B samples, L text tokens, N patches, D channels of the encoder, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from medcoss_components.data.labels import resolve_classes
from medcoss_components.networks.backbone import Backbone
from medcoss_components.networks.initialisation import initialise
from medcoss_components.networks.pretraining import ModalityLike

HEAD_EPS = 1e-6


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Names of the classes in the order of the outputs; a number K stands for "0" to "K - 1".

    Raises:
        InputError: for fewer than two classes, a name twice or something that is no list.
    """
    return resolve_classes([str(number) for number in range(classes)] if isinstance(classes, int) else classes)


class ClassificationModel(Backbone):
    """Logits per class for texts, images or volumes: encoder, mean over tokens, head.

    Images: mean of the patch tokens, LayerNorm, Linear. Volumes: mean of the patch tokens, LayerNorm, then Linear,
    LayerNorm, GELU, Linear. Texts: mean over real tokens, then Linear, LayerNorm, GELU, Linear. The class token of
    images and volumes takes part in the encoder and is left out of the mean.

    Args:
        preset: sizes to start from: "vit_base", "vit_small" or "demo".
        modality: name or registry entry.
        input_shape: (L,), (C, H, W) or (C, Z, H, W); None for the modality's own.
        classes: names in the order of the outputs, or how many there are.
        text_attention: "bidirectional", or "causal" as the published weights need it.
        pad_id: text only, the id that fills up short texts.
        vocabulary_size: text only, rows of the word table; None for the preset's.
        overrides: other sizes of :class:`~medcoss_components.networks.presets.Preset`.

    Attributes:
        classes: names of the outputs.
        sizes, modality, encoder_frozen: see :class:`~medcoss_components.networks.backbone.Backbone`.

    Raises:
        InputError: for settings that do not fit together; the message names them.

    Example:
        >>> import torch
        >>> model = ClassificationModel(preset="demo", modality="xray", classes=["normal", "pneumonia"])
        >>> model(torch.zeros(3, 3, 224, 224)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        *,
        preset: str = "vit_base",
        modality: ModalityLike,
        input_shape: Iterable[int] | None = None,
        classes: int | Sequence[str],
        text_attention: str = "bidirectional",
        pad_id: int = 0,
        vocabulary_size: int | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(
            preset=preset,
            modality=modality,
            input_shape=input_shape,
            text_attention=text_attention,
            pad_id=pad_id,
            vocabulary_size=vocabulary_size,
            **overrides,
        )
        self.classes = class_names(classes)
        self.head = classification_head(self.dimension, self.sizes.width, len(self.classes))
        initialise(self)

    def forward(self, inputs: Tensor, *, depth_noise: Tensor | None = None) -> Tensor:
        """Classify a batch.

        Args:
            inputs: token ids (B, L) int64, images (B, C, H, W) or volumes (B, C, Z, H, W).
            depth_noise: (B, 2 * depth) in [0, 1), for stochastic depth in training mode; drawn when None.

        Returns:
            (B, K) float32 logits.

        Raises:
            InputError: for inputs of another shape.
        """
        return self.head(self.embedding(inputs, depth_noise=depth_noise)).float()

    def embedding(self, inputs: Tensor, *, depth_noise: Tensor | None = None) -> Tensor:
        """What the head reads, (B, D) float32: the mean of the real tokens or of the patch tokens."""
        if self.dimension == 1:
            tokens = self.encode_text(inputs, depth_noise=depth_noise)
            return masked_mean(tokens, self.padding_mask(inputs))
        (tokens,) = self.encode_image(inputs, depth_noise=depth_noise)
        return tokens[:, 1:].float().mean(dim=1)


def masked_mean(tokens: Tensor, real: Tensor) -> Tensor:
    """Mean of the tokens (B, L, D) where ``real`` (B, L) is true: (B, D) float32; 0 for a text without any."""
    weight = real.float().unsqueeze(-1)
    return (tokens.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def classification_head(dimension: int, width: int, classes: int) -> nn.Sequential:
    """The head for texts (1), images (2) or volumes (3): (B, width) -> (B, classes)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if dimension > 1:
        layers["norm"] = nn.LayerNorm(width, eps=HEAD_EPS)
    if dimension != 2:
        layers["hidden"] = nn.Linear(width, width)
        layers["hidden_norm"] = nn.LayerNorm(width, eps=HEAD_EPS)
        layers["activation"] = nn.GELU()
    layers["output"] = nn.Linear(width, classes)
    return nn.Sequential(layers)
