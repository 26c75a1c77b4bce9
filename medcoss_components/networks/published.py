"""Names and layouts of the published MedCoSS checkpoint, and the way to and from ours (METHOD.md section 10).

Uni-Perceiver-B uses the same names for its encoder, tokenizers and class token, so a checkpoint that holds only these
converts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from medcoss_components.errors import InputError
from medcoss_components.networks.embeddings import sincos_table
from medcoss_components.networks.presets import PRESETS, Preset

VIT_BASE = PRESETS["vit_base"]

# Block parts, ours -> published.
_ENCODER_BLOCK = {
    "attention_scale": "gamma_1",
    "mlp_scale": "gamma_2",
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.qkv.bias": "self_attn.in_proj_bias",
}
_ENCODER_BLOCK_MODULES = {
    "attention.output": "self_attn.out_proj",
    "mlp_in": "linear1",
    "mlp_out": "linear2",
    "attention_norm": "norm1",
    "mlp_norm": "norm2",
}
_DECODER_BLOCK_MODULES = {
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.output": "attn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_MODULES = {
    "text_embedding.norm": "token_embed.embeddings_norm",
    "image_embedding.norm": "video_embed.embeddings_norm",
    "image_embedding.tokenizers.2d": "video_embed.embeddings",
    "image_embedding.tokenizers.3d": "video_embed.embeddings_3D",
    "decoder.embed": "decoder_embed",
    "decoder.norm": "decoder_norm",
    "decoder.heads.2d": "decoder_pred_2D",
    "decoder.heads.3d": "decoder_pred_3D",
    "text_head.dense": "mlm_head.transform.dense",
    "text_head.norm": "mlm_head.transform.LayerNorm",
}
_TENSORS = {
    "image_embedding.class_token": "cls_token",
    "decoder.mask_token": "mask_token",
    "text_embedding.word.weight": "token_embed.embeddings.weight",
    "text_embedding.position": "token_embed.embeddings_pos.position_embeddings.weight",
    "text_head.output.weight": "mlm_head.decoder.weight",
    "text_head.output.bias": "mlm_head.bias",
}
# Published tables of which only some rows are ever read, and how many rows they have.
TABLE_ROWS = {
    "token_embed.embeddings_token_type.weight": 2,
    "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight": 1024,
    "video_embed.embeddings_st_pos_2D.temporal_pos_embed.weight": 8,
    "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight": 4096,
    "video_embed.embeddings_st_pos_3D.temporal_pos_embed.weight": 8,
    "decoder_pos_embed_1D.weight": 2,
}
# Published tables that are never read, and their rows.
UNREAD_TABLES = {
    "video_embed.embeddings_pos.position_embeddings.weight": 1600,
    "video_embed.embeddings_type.weight": 1,
}


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``start + prod(shape)`` of a published table (..., D) are our tensor (*shape, D)."""

    published: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + prod(self.shape)


@lru_cache(maxsize=8)
def _rows(sizes: Preset) -> dict[str, Rows]:
    """Our name -> rows of a published table."""
    embedding = "video_embed.embeddings_st_pos"
    places = {
        "text_embedding.token_type": Rows("token_embed.embeddings_token_type.weight", 0, ()),
        "text_head.offset": Rows("decoder_pos_embed_1D.weight", 0, ()),
    }
    for dimension, grid in ((2, sizes.grid_2d), (3, sizes.grid_3d)):
        tokenizer, positions = f"image_embedding.tokenizers.{dimension}d", f"decoder.positions.{dimension}d"
        places |= {
            f"{tokenizer}.position": Rows(f"{embedding}_{dimension}D.spatial_pos_embed.weight", 0, grid),
            f"{tokenizer}.temporal": Rows(f"{embedding}_{dimension}D.temporal_pos_embed.weight", 0, ()),
            f"{positions}.class_slot": Rows(f"decoder_pos_embed_{dimension}D", 0, ()),
            f"{positions}.grid": Rows(f"decoder_pos_embed_{dimension}D", 1, grid),
        }
    return places


def _module_pairs(modules: Mapping[str, str], ours: str = "", published: str = "") -> Iterator[tuple[str, str]]:
    for our_name, published_name in modules.items():
        for part in ("weight", "bias"):
            yield f"{ours}{our_name}.{part}", f"{published}{published_name}.{part}"


@lru_cache(maxsize=8)
def _same_names(sizes: Preset) -> dict[str, str]:
    """Ours -> published, for tensors that keep their shape."""
    names = dict(_TENSORS) | dict(_module_pairs(_MODULES))
    for number in range(sizes.depth):
        ours, published = f"encoder.blocks.{number}.", f"fused_encoder.layers.{number}."
        names.update({ours + name: published + other for name, other in _ENCODER_BLOCK.items()})
        names.update(_module_pairs(_ENCODER_BLOCK_MODULES, ours, published))
    for number in range(sizes.decoder_depth):
        ours, published = f"decoder.blocks.{number}.", f"decoder_blocks.{number}."
        names.update(_module_pairs(_DECODER_BLOCK_MODULES, ours, published))
    return names


def published_places(sizes: Preset = VIT_BASE) -> dict[str, str | Rows]:
    """Where each of our tensors stands in a published checkpoint: its name there, or rows of a table."""
    return {**_same_names(sizes), **_rows(sizes)}


@dataclass(frozen=True)
class Conversion:
    """A published checkpoint under our names.

    Attributes:
        state: our name -> tensor, for whatever the checkpoint held; tensors are copies.
        dropped: published tables, or rows of them as ``name[first:last]``, that the network never reads.
        unexpected: names that no part of the published model carries.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the published checkpoint or of Uni-Perceiver."""
    return any(name.startswith("fused_encoder.") for name in state)


def _read_rows(table: Tensor, rows: Rows) -> Tensor:
    flat = table.reshape(-1, table.shape[-1])
    if flat.shape[0] < rows.stop:
        raise InputError(f"{rows.published}: has {flat.shape[0]} rows, at least {rows.stop} are needed.")
    return flat[rows.start : rows.stop].reshape(*rows.shape, -1).clone()


def _dropped(state: Mapping[str, Tensor], sizes: Preset) -> tuple[str, ...]:
    """Published tables and rows that have no place in our network."""
    ends: dict[str, int] = {}
    for rows in _rows(sizes).values():
        ends[rows.published] = max(rows.stop, ends.get(rows.published, 0))
    partly = [
        f"{name}[{ends[name]}:{state[name].shape[0]}]"
        for name in TABLE_ROWS
        if name in state and state[name].shape[0] > ends[name]
    ]
    return tuple(name for name in UNREAD_TABLES if name in state) + tuple(partly)


def from_published(state: Mapping[str, Tensor], *, sizes: Preset = VIT_BASE, copy: bool = True) -> Conversion:
    """Bring a published state dict, or the part of it that is there, under our names.

    Args:
        state: published name -> tensor.
        sizes: sizes of the network.
        copy: whether tensors that keep their shape are copied; False saves memory and leaves them shared.

    Raises:
        InputError: when a position table is too short.
    """
    same_names, places = _same_names(sizes), _rows(sizes)
    same = {ours: state[name].clone() if copy else state[name] for ours, name in same_names.items() if name in state}
    read = {ours: _read_rows(state[rows.published], rows) for ours, rows in places.items() if rows.published in state}
    known = {*same_names.values(), *(rows.published for rows in places.values()), *UNREAD_TABLES}
    return Conversion(same | read, _dropped(state, sizes), tuple(sorted(set(state) - known)))


def _published_table(state: Mapping[str, Tensor], name: str, sizes: Preset) -> Tensor:
    """One published table from the rows that we keep; rows that nothing reads are 0."""
    kept = {ours: rows for ours, rows in _rows(sizes).items() if rows.published == name}
    first = state[next(iter(kept))]
    stop = max(rows.stop for rows in kept.values())
    table = torch.zeros(TABLE_ROWS.get(name, stop), first.shape[-1], dtype=first.dtype)
    for ours, rows in kept.items():
        table[rows.start : rows.stop] = state[ours].reshape(-1, first.shape[-1])
    return table if name in TABLE_ROWS else table.unsqueeze(0)


def fixed_positions(sizes: Preset = VIT_BASE) -> dict[str, Tensor]:
    """The decoder's position tables of a model with sin-cos positions, under the names of learned ones."""
    tables = {}
    for dimension, grid in ((2, sizes.grid_2d), (3, sizes.grid_3d)):
        place = f"decoder.positions.{dimension}d"
        tables[f"{place}.class_slot"] = torch.zeros(sizes.decoder_width)
        tables[f"{place}.grid"] = sincos_table(grid, sizes.decoder_width).reshape(*grid, -1)
    return tables


def to_published(state: Mapping[str, Tensor], *, sizes: Preset = VIT_BASE, copy: bool = True) -> dict[str, Tensor]:
    """The inverse of :func:`from_published` for a whole model with learned decoder positions.

    Rows and tables that nothing reads are written as zeros. Arguments as for :func:`from_published`.

    Raises:
        InputError: when a tensor is missing or its grid is not the published one; the message lists names.
    """
    same_names, places = _same_names(sizes), _rows(sizes)
    missing = sorted({*same_names, *places} - set(state))
    if missing:
        raise InputError(f"not a whole vit_base model with learned decoder positions; missing: {', '.join(missing)}.")
    wrong = [name for name, rows in places.items() if tuple(state[name].shape[:-1]) != rows.shape]
    if wrong:
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in wrong)
        raise InputError(f"position grids differ from the published ones: {shapes}.")
    published = {name: state[ours].clone() if copy else state[ours] for ours, name in same_names.items()}
    tables = {rows.published for rows in places.values()}
    published.update({name: _published_table(state, name, sizes) for name in sorted(tables)})
    published.update({name: torch.zeros(rows, sizes.width) for name, rows in UNREAD_TABLES.items()})
    return published
