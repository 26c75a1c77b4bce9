"""Why attention runs in float32 on a CPU: bfloat16 and float32 side by side, forward and backward, alternating.

    python benchmarks/cpu_attention.py [pairs]

Prints the median milliseconds of each side and their ratio for the shapes that the presets use.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "demo, text 64 x 48": (64, 4, 48, 32),
    "demo, visible patches 32 x 50": (32, 4, 50, 32),
    "demo, decoder 32 x 197": (32, 4, 197, 32),
    "vit_base, visible patches 16 x 50": (16, 12, 50, 64),
    "vit_base, decoder 16 x 197": (16, 16, 197, 32),
}
"""Name -> (batch, heads, tokens, channels of a head)."""


def milliseconds(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """One forward and backward pass of scaled dot-product attention."""
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    started = time.perf_counter()
    F.scaled_dot_product_attention(query, key, value).sum().backward()
    return 1000 * (time.perf_counter() - started)


def main(pairs: int = 15) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {pairs} alternating pairs\n")
    print("| shape | bfloat16, ms | float32, ms | ratio |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        times: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
        for _ in range(pairs + 2):
            for dtype, values in times.items():
                values.append(milliseconds(shape, dtype))
        half, full = (statistics.median(values[2:]) for values in times.values())
        print(f"| {name} | {half:.1f} | {full:.1f} | {half / full:.1f}x |")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
