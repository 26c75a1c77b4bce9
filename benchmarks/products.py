"""How much faster the matrix products alone get: those of one straightforward step, replayed in float32 and bfloat16.

    python benchmarks/products.py [--quick] [--record]

A step cannot gain more than its products do, but for work that it leaves out: these rows say what the processor has to
give. Shapes and layouts are recorded while the straightforward side takes one step, forward and backward, and each
product is then computed on its own, in both precisions in turn.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import Options, Row, alternate, main
from sides import Setting, free, steps_of
from torch.utils._python_dispatch import TorchDispatchMode

SETTINGS = {
    "products_2d": ("xray", "matrix products of a straightforward step, X-rays"),
    "products_3d": ("ct", "matrix products of a straightforward step, CT"),
}
"""Row -> (modality, what)."""
QUICK_BATCH = 4


@dataclass(frozen=True)
class Layout:
    """Shape of a matrix, and whether it lies transposed in memory."""

    rows: int
    columns: int
    transposed: bool

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Layout:
        return cls(*matrix.shape, transposed=matrix.stride(0) < matrix.stride(1))

    def made(self, dtype: torch.dtype) -> torch.Tensor:
        """Random values in this layout."""
        shape = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        values = torch.randn(shape).to(dtype)
        return values.t() if self.transposed else values


class ProductCounter(TorchDispatchMode):
    """Counts the products of two matrices that run inside it, by the layouts of both."""

    FACTORS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.FACTORS:
            left, right = (Layout.of(args[place]) for place in self.FACTORS[function])
            self.found[left, right] += 1
        return function(*args, **(kwargs or {}))


def operations(products: Counter[tuple[Layout, Layout]]) -> float:
    """Floating-point operations of all products; a multiplication and an addition are two."""
    return sum(2.0 * left.rows * left.columns * right.columns * count for (left, right), count in products.items())


def replay(products: Counter[tuple[Layout, Layout]], dtype: torch.dtype) -> float:
    """Seconds of all products, each computed as often as it was counted; making the matrices does not count."""
    seconds = 0.0
    for (left, right), count in products.items():
        one, other = left.made(dtype), right.made(dtype)
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(one, other)
        seconds += time.perf_counter() - started
    return seconds


def products_row(name: str, options: Options, setting: Setting | None = None) -> Row:
    """Record the products of one step and measure them."""
    modality, what = SETTINGS[name]
    setting = setting or Setting(modality, batch=QUICK_BATCH if options.quick else 16)
    straightforward, ours = steps_of(setting, options, name)
    with ProductCounter() as counter:
        straightforward.step()
    del straightforward, ours
    free()
    sides = [partial(replay, counter.found, dtype) for dtype in (torch.float32, torch.bfloat16)]
    figures = alternate(*sides, pairs=options.pairs_of(), warmup=1)
    count = sum(counter.found.values())
    note = f"{count} products, {operations(counter.found) / 1e9:.0f} GFLOP; float32 against bfloat16, nothing else."
    return Row(name, f"{what}, batch {setting.batch}", "s/step", *figures, target=None, note=note)


ROWS = {name: partial(products_row, name) for name in SETTINGS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
