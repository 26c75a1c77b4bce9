"""Updating weights while the backward pass runs, so that the gradients of all layers never stand in memory together."""

from __future__ import annotations

import weakref

import torch

PORTION_BYTES = 64 << 20
"""Gradients are used up whenever so much of them has come together."""


class StepInBackward:
    """Lets an optimiser step as soon as gradients are complete, layer by layer.

    Every update of AdamW concerns one parameter alone, so the result is the same, bit for bit. It cannot go with what
    looks at all gradients at once or at those of several batches: clipping by the norm, gradient scaling, accumulation,
    several processes.

    Args:
        optimizer: its parameters get a hook each, which is idle outside of :meth:`backward`.
        portion: bytes of gradients that may come together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, portion: int = PORTION_BYTES) -> None:
        self.optimizer, self.portion = optimizer, portion
        self.pending, self.running = 0, False
        here = weakref.ref(self)  # autograd holds hooks where Python does not look: what they hold is never freed

        def take(parameter: torch.Tensor) -> None:
            if (steps := here()) is not None and steps.running:
                steps._take(parameter)

        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(take)

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiate a loss and step; no gradient is left."""
        self.running = True
        try:
            loss.backward()
        finally:
            self.running = False
        self._step()

    def _take(self, parameter: torch.Tensor) -> None:
        self.pending += 0 if parameter.grad is None else parameter.grad.nbytes
        if self.pending >= self.portion:
            self._step()

    def _step(self) -> None:
        """Use up the gradients that are there."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending = 0
