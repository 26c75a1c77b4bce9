"""One training step: ViT-B, masked images, volumes and texts, and the rehearsal step of images.

python benchmarks/training.py [--quick] [--only train_2d] [--record]
"""

from __future__ import annotations

import sys
from functools import partial

from harness import Options, Row, alternate, main
from sides import Setting, free, steps_of

QUICK_BATCH = 4
SETTINGS = {
    "train_2d": ("xray", "training step, X-rays 224 x 224", 3.0),
    "train_3d": ("ct", "training step, CT 16 x 192 x 192", 3.0),
    "train_text": ("report", "training step, reports of up to 112 tokens", 5.0),
    "train_2d_checkpointed": ("xray", "training step, X-rays, checkpoint_activations", None),
    "train_2d_kernel": ("xray", "training step, X-rays, against need_weights=False", None),
    "rehearse_2d": ("xray", "rehearsal step (student and teacher), X-rays", 3.0),
}
"""Row -> (modality, what, target)."""
NOTES = {
    "train_2d": "ours converts, augments and masks inside the step; the straightforward side gets that ready-made.",
    "train_2d_kernel": "the straightforward side calls scaled_dot_product_attention, too.",
    "train_2d_checkpointed": "the time that the memory saved by this option costs.",
    "train_text": "made-up reports, lengths log-normal around 75 tokens, cut at 112.",
}


def step_row(name: str, options: Options, setting: Setting | None = None) -> Row:
    """Measure one kind of step."""
    modality, what, target = SETTINGS[name]
    batch = QUICK_BATCH if options.quick else 16
    options_of = {"checkpointed": name.endswith("checkpointed"), "kernel_attention": name.endswith("kernel")}
    setting = setting or Setting(modality, batch=batch, **options_of)
    straightforward, ours = steps_of(setting, options, name, rehearsal=name.startswith("rehearse"))
    figures = alternate(straightforward, ours, pairs=options.pairs_of(full=7), warmup=1, settle=True)
    del straightforward, ours
    free()
    what = f"{what}, batch {setting.batch}"
    return Row(name, what, "s/step", *figures, target=target, note=NOTES.get(name, ""))


ROWS = {name: partial(step_row, name) for name in SETTINGS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
