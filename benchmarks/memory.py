"""Peak memory of a training step: each side in a process of its own, above what it held once the network was built.

    python benchmarks/memory.py [--quick] [--record]

Counted are gradients, the optimiser's state and all that forward and backward keep; not counted are the imported
libraries and the weights, which are the same on both sides.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from harness import Options, Row, alternate, main

STEPS = 2
"""The first one makes the state of the optimiser, the second meets it in full."""
MODALITIES = {"2d": ("xray", "X-rays"), "3d": ("ct", "CT"), "text": ("report", "reports")}
CHECKPOINTED = "checkpointed"
SETTINGS = {
    f"memory_{name}{'_' + CHECKPOINTED if option else ''}": (modality, what, option)
    for option in (False, True)
    for name, (modality, what) in MODALITIES.items()
}
"""Row -> (modality, what, whether our side runs with the option checkpoint_activations)."""


def resident_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def forget_peak() -> None:
    """Start the peak anew from what is held now, where the kernel allows it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """The most memory that this process held since :func:`forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, modality: str, batch: int, preset: str = "vit_base") -> int:
    """Run a few steps of one side ("straightforward", "ours", "checkpointed") in this process; bytes above the built
    network."""
    from sides import OurSteps, Setting, StraightforwardSteps

    setting = Setting(modality, batch=batch, preset=preset, checkpointed=side == CHECKPOINTED)
    with tempfile.TemporaryDirectory() as folder:
        ours = OurSteps(setting, Path(folder), batches=2)
        steps = StraightforwardSteps(ours) if side == "straightforward" else ours
        del ours
        forget_peak()
        before = resident_bytes()
        for _ in range(STEPS):
            steps.step()
        return peak_bytes() - before


def measure_apart(side: str, modality: str, batch: int, preset: str) -> float:
    """:func:`measure` in a fresh process."""
    command = [sys.executable, str(Path(__file__)), "--measure", side, modality, str(batch), preset]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MEDCOSS_PROGRESS": "0"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


def memory_row(name: str, options: Options, *, preset: str = "vit_base", batch: int = 0) -> Row:
    """Measure one modality; memory varies little, so two pairs do for the short form."""
    modality, of, option = SETTINGS[name]
    batch = batch or (4 if options.quick else 16)
    ours = CHECKPOINTED if option else "ours"
    sides = [partial(measure_apart, side, modality, batch, preset) for side in ("straightforward", ours)]
    figures = alternate(*sides, pairs=options.pairs_of(quick=1), warmup=0)
    what = f"peak memory of a training step, {of}, batch {batch}{', checkpoint_activations' if option else ''}"
    return Row(name, what, "B", *figures, target=0.6, kind="share", note="gradients, optimiser and activations.")


ROWS = {name: partial(memory_row, name) for name in SETTINGS}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps({"bytes": measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])}))
    else:
        sys.exit(main(ROWS))
