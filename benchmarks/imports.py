"""How long it takes until the package is imported and until ``medcoss --help`` has answered.

python benchmarks/imports.py [--quick] [--record]
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from harness import Options, Row, main, timed

COMMANDS = {
    "import": ("import of medcoss_components", ["-c", "import medcoss_components"]),
    "help": ("medcoss --help", ["-m", "medcoss_components", "--help"]),
}
"""Row -> (what, arguments of Python)."""
PROBE = """
import contextlib, io, runpy, sys
sys.argv = ["medcoss", *sys.argv[1:]]
import medcoss_components
if len(sys.argv) > 1:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_module("medcoss_components", run_name="__main__")
print(" ".join(name for name in ("torch", "monai", "ignite", "mlflow", "sklearn") if name in sys.modules))
"""


def heavy_modules(*arguments: str) -> list[str]:
    """Heavy packages that are loaded after the import, or after ``medcoss <arguments>``."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


def import_row(name: str, options: Options) -> Row:
    """Measure one command in fresh processes; a second for all, and without torch."""
    what, arguments = COMMANDS[name]
    run = partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True)
    side = timed(run)
    side()
    figures = tuple(side() for _ in range(options.pairs_of(full=7)))
    loaded = heavy_modules(*(["--help"] if name == "help" else []))
    note = f"loads {', '.join(loaded)}" if loaded else "loads neither torch, monai, ignite, mlflow nor scikit-learn."
    if "torch" in loaded:  # then the target is missed, however fast the disk was
        return Row(name, what, "s", (), figures, target=0.0, kind="limit", note=note)
    return Row(name, what, "s", (), figures, target=1.0, kind="limit", note=note)


ROWS = {name: partial(import_row, name) for name in COMMANDS}

if __name__ == "__main__":
    sys.exit(main(ROWS))
