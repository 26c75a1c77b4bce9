"""Small decisions that all ranks must make alike, at the same step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch

TIMEOUT_HOURS = 24.0
"""How long ranks wait for each other: long, because the others stand still while rank 0 prepares a store."""


class AnyRank:
    """Whether a flag is up on any rank; every rank must ask at the same moments.

    It goes over the hosts (gloo), whatever the devices talk: no device waits, and none has to be asked.
    """

    def __init__(self) -> None:
        self.group: Any = None

    def __call__(self, flag: bool) -> bool:
        if idist.get_world_size() == 1:
            return flag
        if self.group is None:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=TIMEOUT_HOURS))
        value = torch.tensor([int(flag)])
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(value)
