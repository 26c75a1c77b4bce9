"""What a bundle's config needs when it runs: where the bundle is, which weights it has, a check of the settings.

``python -m monai.bundle run`` and ``monai.bundle.create_workflow`` do not tell a config where its file is. It is found
out here from the workflow that is reading the config, so that defaults land beside the bundle from any folder.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from medcoss_components.errors import InputError
from medcoss_components.files import read_json

CONFIG_FOLDER = "configs"
DEBUG_VARIABLE = "MEDCOSS_DEBUG"
CLIENT_KEYS = frozenset({"about", "bundle_root", "dataset_dir", "run_name", "experiment_name", "save_execute_config"})
"""Top-level keys that a config may hold without referring to them: the header and what MONAI's clients set."""
STEP_KEYS = frozenset({"imports", "initialize", "run", "finalize"})

_REFERENCE = re.compile(r"[@%](\w+)")


def bundle_root(default: str = ".") -> str:
    """Absolute folder of the bundle whose config is being read: the parent of its ``configs`` folder.

    A config names it as ``{"_target_": "medcoss_components.bundle_root"}``; setting the key (``--bundle_root DIR``)
    replaces it.

    Args:
        default: the answer when no MONAI workflow is reading the config (``ConfigParser`` used alone).
    """
    workflow = _reading_workflow()
    if workflow is None:
        return str(Path(default).resolve())
    folder = Path(workflow.config_root_path).resolve()
    return str(folder.parent if folder.name == CONFIG_FOLDER else folder)


def bundle_weights(bundle_root: str | Path) -> str:
    """Default weights of a bundle: its ``models/model.pt``, else what its own training left in ``output``.

    A chain leaves one folder per stage (``01_report``, ...); the last one is taken.

    Args:
        bundle_root: folder of the bundle.
    """
    root = Path(bundle_root)
    stages = sorted(root.glob("output/[0-9][0-9]_*/model.pt"), reverse=True)
    candidates = [root / "models" / "model.pt", root / "output" / "model.pt", *stages]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))


def start_bundle(*, bundle_root: str) -> None:
    """First step of every workflow: refuse misspelt settings, and show what users can act on in one line.

    MONAI adds any ``--key value`` to the config, so ``--max_epoch 2`` would change nothing without a word. Here a
    top-level setting that no part of the config refers to is an error. From the command line an
    :class:`~medcoss_components.errors.InputError` is shown without its traceback; ``MEDCOSS_DEBUG=1`` shows all.

    Args:
        bundle_root: folder of the bundle. Naming it here fixes it for the whole life of the workflow.

    Raises:
        InputError: an unknown setting; the message shows the closest known ones.
    """
    if _on_monai_command_line() and not os.environ.get(DEBUG_VARIABLE):
        sys.excepthook = show_error
    workflow = _reading_workflow()
    if workflow is not None:
        config = workflow.parser.get()
        check_settings(config, replaced=_replaced_parts(config, Path(workflow.config_root_path)))


def _replaced_parts(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The training config below a merge of evaluate.json over train.json, which MONAI's federated client makes.

    Evaluation replaces parts there, and their settings stay behind without effect.
    """
    path = folder / "train.json"
    return read_json(path) if {"train", "evaluator"} <= set(config) and path.is_file() else {}


def check_settings(config: Mapping[str, Any], *, replaced: Mapping[str, Any] | None = None) -> None:
    """Refuse top-level settings (values, not parts) that nothing in the config refers to.

    Args:
        config: the config as it runs.
        replaced: a config whose parts were replaced in ``config``; what it refers to may stay.

    Raises:
        InputError: naming them and the closest known settings.
    """
    texts = [*_strings(config), *_strings(replaced or {})]
    used = {name for text in texts for name in _REFERENCE.findall(text)} | CLIENT_KEYS
    settings = {key for key, value in config.items() if _is_setting(key, value)}
    known = sorted((settings & used) - CLIENT_KEYS)
    if unknown := sorted(settings - used):
        close = [match for key in unknown for match in difflib.get_close_matches(key, known, n=2)]
        hint = f"did you mean {', '.join(close)}?" if close else f"settings: {', '.join(known)}"
        raise InputError(f"unknown setting {', '.join(unknown)}; {hint}")


def show_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """``sys.excepthook`` that prints the :class:`InputError` behind an exception on one line, anything else in full."""
    for cause in _causes(error):
        if isinstance(cause, InputError):
            print(f"error: {cause}\n({DEBUG_VARIABLE}=1 shows the traceback)", file=sys.stderr)
            return
    sys.__excepthook__(kind, error, traceback)


def _on_monai_command_line() -> bool:
    specification = getattr(sys.modules.get("__main__"), "__spec__", None)
    return specification is not None and specification.name.startswith("monai.bundle")


def _reading_workflow() -> Any | None:
    """The ``ConfigWorkflow`` further up the call stack, or None."""
    from monai.bundle import ConfigWorkflow

    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _strings(value)


def _is_setting(key: str, value: Any) -> bool:
    """Whether a top-level entry is a value that a user sets, not a part, a list of steps or MONAI's own."""
    return not (key.startswith("_") or key in STEP_KEYS or _holds_part(value))


def _holds_part(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_holds_part(entry) for entry in value.values())
    return isinstance(value, list | tuple) and any(_holds_part(entry) for entry in value)
