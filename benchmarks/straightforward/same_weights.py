"""Give the straightforward network the weights of ours, so that both sides can be compared number by number."""

from __future__ import annotations

import torch
from torch import Tensor

from medcoss_components.networks.embeddings import sincos_table
from straightforward.model import StraightforwardModel

TABLES = {"token_type.weight": "text_embedding.token_type", "text_position.weight": "text_embedding.position"}
TENSORS = {
    "word.weight": "text_embedding.word.weight",
    "class_token": "image_embedding.class_token",
    "mask_token": "decoder.mask_token",
    "text_offset": "text_head.offset",
}
MODULES = {
    "text_norm": "text_embedding.norm",
    "image_norm": "image_embedding.norm",
    "patch2d": "image_embedding.tokenizers.2d",
    "patch3d": "image_embedding.tokenizers.3d",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.norm",
    "predict2d": "decoder.heads.2d",
    "predict3d": "decoder.heads.3d",
    "text_dense": "text_head.dense",
    "text_head_norm": "text_head.norm",
    "text_output": "text_head.output",
}
BLOCK_MODULES = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "linear1": "mlp_in",
    "linear2": "mlp_out",
    "attention.out_proj": "attention.output",
}
BLOCK_TENSORS = {"attention.in_proj_weight": "attention.qkv.weight", "attention.in_proj_bias": "attention.qkv.bias"}
LAYER_SCALES = {"gamma1": "attention_scale", "gamma2": "mlp_scale"}


def _names(model: StraightforwardModel) -> dict[str, str]:
    """Name there -> name in ours, for tensors of equal shape."""
    names = dict(TENSORS)
    modules = dict(MODULES)
    stacks = [("blocks", "encoder.blocks", BLOCK_TENSORS | LAYER_SCALES)]
    stacks.append(("decoder_blocks", "decoder.blocks", BLOCK_TENSORS))
    for theirs, ours, tensors in stacks:
        for number in range(len(getattr(model, theirs))):
            names |= {f"{theirs}.{number}.{a}": f"{ours}.{number}.{b}" for a, b in tensors.items()}
            modules |= {f"{theirs}.{number}.{a}": f"{ours}.{number}.{b}" for a, b in BLOCK_MODULES.items()}
    return names | {f"{a}.{part}": f"{b}.{part}" for a, b in modules.items() for part in ("weight", "bias")}


def load_ours(model: StraightforwardModel, state: dict[str, Tensor]) -> StraightforwardModel:
    """Copy the weights of a ``PretrainingModel`` with sin-cos decoder positions, under the names of this network.

    Raises:
        RuntimeError: when a tensor is missing or of another shape.
    """
    copied = {theirs: state[ours] for theirs, ours in _names(model).items()}
    copied |= {theirs: state[ours].reshape(-1, model.sizes.width) for theirs, ours in TABLES.items()}
    for d, grid in ((2, model.sizes.grid_2d), (3, model.sizes.grid_3d)):
        tokenizer = f"image_embedding.tokenizers.{d}d"
        copied[f"position{d}d"] = state[f"{tokenizer}.position"].flatten(0, -2)[None]
        copied[f"temporal{d}d"] = state[f"{tokenizer}.temporal"]
        table = sincos_table(grid, model.sizes.decoder_width)
        copied[f"decoder_position{d}d"] = torch.cat([torch.zeros(1, table.shape[1]), table])[None]
    copied = {name: tensor.detach().clone() for name, tensor in copied.items()}
    model.load_state_dict(copied, assign=model.class_token.is_meta)
    return model
