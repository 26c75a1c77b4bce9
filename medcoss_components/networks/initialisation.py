"""First values of parameters, from a passed generator.

Values are always drawn on the CPU and then copied, so a network that already sits on an accelerator starts from the
same numbers. METHOD.md section 3: linear weights Xavier-uniform, biases 0, tokens and tables N(0, 0.02^2).
Convolutions, which only the decoders of segmentation have, start as PyTorch starts them, with biases 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

TABLE_DEVIATION = 0.02


@torch.no_grad()
def fill_normal(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Fill in place with N(0, 0.02^2)."""
    if parameter.is_meta:
        return
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * TABLE_DEVIATION)


@torch.no_grad()
def fill_xavier(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Fill a weight (out, in...) in place with U(-a, a), a = sqrt(6 / (out + in)); kernels count as one input axis."""
    if parameter.is_meta:
        return
    outputs, inputs = parameter.shape[0], parameter[0].numel()
    bound = (6.0 / (outputs + inputs)) ** 0.5
    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound)


@torch.no_grad()
def fill_convolution(parameter: Tensor, generator: torch.Generator | None) -> None:
    """Fill a kernel (a, b, sides...) in place with U(-1 / sqrt(n), 1 / sqrt(n)), n = b * product(sides).

    This is He's rule with PyTorch's slope of sqrt(5), the start of MONAI's UNETR. b counts inputs of a convolution and
    outputs of a transposed one.
    """
    if parameter.is_meta:
        return
    bound = parameter[0].numel() ** -0.5
    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound)


def _initialise_one(module: nn.Module, generator: torch.Generator | None) -> None:
    if isinstance(module, nn.Linear):
        fill_xavier(module.weight, generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        fill_normal(module.weight, generator)
    elif isinstance(module, _ConvNd):
        fill_convolution(module.weight, generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm | _NormBase):
        module.reset_parameters()
    elif hasattr(module, "initialise"):
        module.initialise(generator)


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give every parameter of ``network`` its first value, module by module in a fixed order.

    A module made of parts of other libraries may have a rule of its own for them, ``initialise_parts(generator)``,
    which is applied after all others.
    """
    for module in network.modules():
        _initialise_one(module, generator)
    for module in network.modules():
        if hasattr(module, "initialise_parts"):
            module.initialise_parts(generator)
