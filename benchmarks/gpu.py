"""The table of one GPU: ViT-B at batch 128, straightforward side under fp16 autocast, eager.

    python benchmarks/gpu.py [--quick] [--only train_2d mfu] [--record]

Needs torch with CUDA and this package; where MONAI and Ignite are missing, ``lean.py`` stands in for the engine (the
note of the first row says so). Rows:

- steps and embedding: seconds of both sides, target 2x;
- ``mfu_*``: floating-point operations that torch counts in one of our steps, per second, over what a large matrix
  product reaches on this card (measured first);
- ``wait_*``: share of a step's time that reading costs, with reader threads over a store on the local disk;
- ``peak_*``: memory of a step at batch 128 on our side; ``fits_*``: the largest batch within 24 GB.

Without a GPU it says so and ends with status 3. ``--cpu`` runs everything tiny on the CPU, to try the script out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from harness import Options, Row, alternate, main, timed
from sides import (
    OurSteps,
    Setting,
    StraightforwardSteps,
    engine_installed,
    free,
    loader_over,
    made_up_store,
    our_network,
    straightforward_network,
    wait_for,
)

MODALITIES = {"2d": "xray", "3d": "ct", "text": "report"}
BUDGET = 24e9
FIRST_NOTE = "engine: Pretrainer (MONAI and Ignite)." if engine_installed() else "engine: lean.py, no MONAI or Ignite."


@dataclass(frozen=True)
class Scene:
    """Sizes of everything on this device; the fields of a trial on the CPU are tiny."""

    device: str = "cuda"
    batch: int = 128
    steps: int = 10
    product: int = 8192
    workers: int = 8
    samples: int = 4096
    largest: int = 4096
    setting: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> Setting:
        """What is trained: "2d", "3d" or "text"."""
        return Setting(MODALITIES[kind], batch=self.batch, device=self.device, **self.setting)


TRIAL = Scene(
    "cpu", batch=2, steps=1, product=128, workers=0, samples=8, largest=4, setting={"preset": "demo", "pieces": 3000}
)


def several(steps: Callable[[], Any], count: int, device: str) -> Callable[[], float]:
    """Side: seconds per step of ``count`` steps that are given to the device one after the other."""

    def side() -> float:
        started = time.perf_counter()
        for _ in range(count):
            steps()
        wait_for(device)
        return (time.perf_counter() - started) / count

    return side


def step_row(scene: Scene, kind: str, rehearsal: bool, options: Options) -> Row:
    """A training or rehearsal step of both sides."""
    name = f"{'rehearse' if rehearsal else 'train'}_{kind}"
    ours = OurSteps(scene.of(kind), options.folder / name, rehearsal=rehearsal)
    plain = StraightforwardSteps(ours, rehearsal=rehearsal, scaled=scene.device == "cuda")
    sides = [several(side.step, scene.steps, scene.device) for side in (plain, ours)]
    figures = alternate(*sides, pairs=options.pairs_of(), warmup=2)
    del ours, plain, sides
    free()
    what = f"{'rehearsal' if rehearsal else 'training'} step, {MODALITIES[kind]}, batch {scene.batch}"
    return Row(name, what, "s/step", *figures, target=2.0, note=FIRST_NOTE)


def embedding_row(scene: Scene, options: Options) -> Row:
    """Embedding X-rays, nothing masked; the straightforward side from floats that lie on the device."""
    from straightforward.steps import embed_images

    from medcoss_components.data.transforms import to_model_input
    from medcoss_components.engines.embedding import embed_batch

    setting = scene.of("2d")
    store, _ = made_up_store(setting, options.folder / "embed", scene.batch * 4)
    raw = torch.from_numpy(store.gather(range(len(store)))).split(scene.batch)
    network = our_network(setting).to(scene.device).eval()
    plain = straightforward_network(network).to(scene.device)
    ready = [to_model_input(store.modality, part.to(scene.device)) for part in raw]

    def straightforward() -> None:
        with torch.autocast(scene.device, dtype=torch.float16, enabled=scene.device == "cuda"):
            embed_images(plain, ready)

    def ours() -> None:
        for part in raw:
            embed_batch(network, store.modality, part.to(scene.device), precision=setting.precision).cpu()

    count = len(store)
    figures = alternate(timed(straightforward, count), timed(ours, count), pairs=options.pairs_of(), warmup=2)
    free()
    return Row("embed_2d", "embedding X-rays", "s/sample", *figures, target=2.0, note="ours includes the way there.")


def ceiling(scene: Scene) -> float:
    """Floating-point operations a second of a large bfloat16 matrix product, the best of several."""
    side = scene.product
    one, other = (torch.randn(side, side, device=scene.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [several(partial(torch.matmul, one, other), scene.steps, scene.device)() for _ in range(5)]
    return 2 * side**3 / min(seconds[1:])


def counted_operations(ours: OurSteps) -> int:
    """Floating-point operations of one of our steps, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        ours.step()
    return counter.get_total_flops()


def mfu_row(scene: Scene, kind: str, options: Options) -> Row:
    """Share of the ceiling that a step reaches; shown as seconds at the ceiling against seconds taken."""
    best = ceiling(scene)
    ours = OurSteps(scene.of(kind), options.folder / f"mfu-{kind}")
    side = several(ours.step, scene.steps, scene.device)
    side()
    operations = counted_operations(ours)
    seconds = [side() for _ in range(options.pairs_of())]
    shares = tuple(operations / best / taken for taken in seconds)
    del ours, side
    free()
    note = f"{operations / 1e12:.3g} TFLOP a step in {min(seconds):.3g} s; "
    note += f"a bfloat16 product of {scene.product} reaches {best / 1e12:.4g} TFLOP/s."
    what = f"operations a second, {MODALITIES[kind]}, batch {scene.batch}"
    target = 0.45 if kind != "text" else None
    return Row(f"mfu_{kind}", what, "of the ceiling", (), shares, target=target, kind="reach", note=note)


def wait_row(scene: Scene, kind: str, options: Options) -> Row:
    """What reading adds to a step: steps on batches that are read, against steps on batches at hand."""
    setting = scene.of(kind)
    ours = OurSteps(setting, options.folder / f"wait-{kind}")
    count = max(scene.samples // setting.batch, 2) * setting.batch  # no batch is smaller than those at hand
    store, _ = made_up_store(setting, options.folder / f"wait-{kind}-disk", count)
    loader = loader_over(store, batch_size=setting.batch, num_workers=scene.workers)

    def reading() -> float:
        """A whole epoch from its start, since what is read ahead before the clock starts would not be waited for."""
        wait_for(scene.device)
        started = time.perf_counter()
        for batch in loader:
            ours.trainer.state.iteration += 1
            ours.trainer._iteration(ours.trainer, batch)
        wait_for(scene.device)
        return (time.perf_counter() - started) / len(loader)

    at_hand = several(ours.step, len(loader), scene.device)
    figures = alternate(at_hand, reading, pairs=options.pairs_of(), warmup=1)
    free()
    what = f"time that reading adds to a step, {MODALITIES[kind]}, {scene.workers} reader threads"
    note = f"{count} samples in the store, which the page cache holds; left column: batches at hand."
    return Row(f"wait_{kind}", what, "s/step", *figures, target=0.03, kind="excess", note=note)


def peak_of(scene: Scene, kind: str, options: Options, tag: str) -> float:
    """Memory of a few of our steps, in bytes."""
    if scene.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ours = OurSteps(scene.of(kind), options.folder / f"peak-{kind}-{tag}", batches=2)
    for _ in range(3):
        ours.step()
    wait_for(scene.device)
    return float(torch.cuda.max_memory_allocated()) if scene.device == "cuda" else 1.0


def peak_row(scene: Scene, kind: str, options: Options) -> Row:
    """Peak memory of our training step."""
    free()
    peak = peak_of(scene, kind, options, "one")
    free()
    what = f"peak memory of a training step, {MODALITIES[kind]}, batch {scene.batch}"
    return Row(f"peak_{kind}", what, "B", (), (peak,), target=BUDGET, kind="limit", note="weights included.")


def fits_row(scene: Scene, kind: str, options: Options) -> Row:
    """The largest batch, doubled from the table's own, whose step stays within 24 GB."""
    batch, best = scene.batch, 0
    while batch <= scene.largest:
        free()
        try:
            peak = peak_of(replace(scene, batch=batch), kind, options, str(batch))
        except torch.OutOfMemoryError:
            break
        if peak > BUDGET:
            break
        best, batch = batch, 2 * batch
    free()
    what = f"batch of {MODALITIES[kind]} that fits 24 GB"
    target = float(scene.batch)
    return Row(f"fits_{kind}", what, "samples", (), (float(best),), target=target, kind="reach")


def rows_of(scene: Scene) -> dict[str, Callable[[Options], Row]]:
    """Every row of the table on a device."""
    rows: dict[str, Callable[[Options], Row]] = {}
    for kind in MODALITIES:
        rows[f"train_{kind}"] = partial(step_row, scene, kind, False)
    rows["rehearse_2d"] = partial(step_row, scene, "2d", True)
    rows["rehearse_3d"] = partial(step_row, scene, "3d", True)
    rows["embed_2d"] = partial(embedding_row, scene)
    for name, make in {"mfu": mfu_row, "wait": wait_row, "peak": peak_row, "fits": fits_row}.items():
        rows |= {f"{name}_{kind}": partial(make, scene, kind) for kind in MODALITIES}
    return rows


def start(arguments: list[str]) -> int:
    """Run the table on the GPU; without one say so (status 3), or with ``--cpu`` try everything out tiny."""
    if "--cpu" in arguments:
        rest = [argument for argument in arguments if argument not in ("--cpu", "--record")]
        return main(rows_of(TRIAL), name="gpu", arguments=["--quick", *rest])
    if not torch.cuda.is_available():
        print("gpu.py: no GPU here, nothing was measured; --cpu tries the script out on the CPU.", file=sys.stderr)
        return 3
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return main(rows_of(Scene()), name="gpu", arguments=arguments)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
