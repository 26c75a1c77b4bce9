"""A process that has imported everything and forks one child per command, which may kill itself at a chosen moment.

Starting Python with torch and MONAI takes many times longer than the tiny chains of these tests. The child runs
``python -m monai.bundle ...`` through :mod:`runpy`, the code that ``python -m`` itself uses. The product knows nothing
of this: the moments are planted from outside, and the end is a real ``SIGKILL``.

One JSON command a line on standard input: ``{"argv": [...], "log": path, "folder": path, "moment": {...} or
null}``; the answer is the return code as :mod:`subprocess` gives it (-9 for a killed child). A moment is one of

* ``{"rename": file name, "count": n, "when": "half" | "before" | "after"}``: the n-th time that a finished temporary
  file is about to get this name: with half of it written, just before the rename, or just after it;
* ``{"call": "module:function", "count": n}``: at the n-th call of a function or method;
* ``{"interrupt": "module:function", "count": n}``: no kill, Ctrl-C at the n-th call;
* ``{"unlink": file name, "count": n}``: after the n-th removal of a file of this name;
* ``{"full": file name, "count": n}``: no kill, the disk is full from the n-th time on that this file is written;
* ``{"limit": bytes}``: no kill, no file can grow beyond this.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant_rename(name: str, count: int, when: str) -> None:
    original, seen = os.replace, 0

    def replace(source: Any, target: Any, **options: Any) -> None:
        nonlocal seen
        hit = Path(target).name == name
        seen += hit
        if hit and seen == count and when != "after":
            if when == "half":
                os.truncate(source, os.path.getsize(source) // 2)
            die()
        original(source, target, **options)
        if hit and seen == count:
            die()

    os.replace = replace


def plant_unlink(name: str, count: int) -> None:
    original, seen = Path.unlink, 0

    def unlink(self: Path, missing_ok: bool = False) -> None:
        nonlocal seen
        original(self, missing_ok=missing_ok)
        seen += self.name == name
        if self.name == name and seen == count:
            die()

    Path.unlink = unlink  # type: ignore[method-assign]


def plant_call(target: str, count: int, number: int = signal.SIGKILL) -> None:
    module, path = target.split(":")
    *parents, name = path.split(".")
    owner: Any = import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original, seen = getattr(owner, name), 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(owner, name, call)


def plant_full(name: str, count: int) -> None:
    """``fsync`` is where a file system with delayed allocation tells that there is no room."""
    original, seen = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal seen
        written = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        seen += written.startswith(f".{Path(name).stem}.")
        if written.startswith(f".{Path(name).stem}.") and seen >= count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    os.fsync = fsync


def plant_limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


PLANTS: dict[str, Callable[..., None]] = {
    "rename": plant_rename,
    "unlink": plant_unlink,
    "call": plant_call,
    "interrupt": partial(plant_call, number=signal.SIGINT),
    "full": plant_full,
    "limit": plant_limit,
}


def plant(moment: dict[str, Any]) -> None:
    kind = next(iter(moment))
    values = {key: value for key, value in moment.items() if key != kind}
    PLANTS[kind](moment[kind], **values)


def run_child(command: dict[str, Any]) -> None:
    os.chdir(command["folder"])
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if command["moment"]:
        plant(command["moment"])
    sys.argv = ["monai.bundle", *command["argv"]]
    code = 0
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import medcoss_components

    for name in medcoss_components._EXPORTS:
        getattr(medcoss_components, name)
    import_module("matplotlib.pyplot")
    import_module("sklearn.cluster")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_child(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
