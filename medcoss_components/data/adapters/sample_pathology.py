"""Sample of histopathology: two stained fields of view, each cut into a training part and a validation part.

The store cuts the parts into overlapping tiles (``preparation`` of the recipe).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medcoss_components.data.adapters.recipe import Conversion
from medcoss_components.data.adapters.sample_volumes import PARTS
from medcoss_components.data.adapters.sample_xray import split_picture
from medcoss_components.data.manifest import Item
from medcoss_components.data.readers import read_image
from medcoss_components.data.writers import write_picture


def convert(*, sources: Mapping[str, Path], folder: Path, settings: Mapping[str, Any]) -> Conversion:
    """Write ``images/<subject>-part-<a|b>.png`` and list them.

    Args:
        settings: "fields": list of {file, subject, cut}; part b is what lies right of column ``cut``.
    """
    items: Conversion = {"training": [], "validation": []}
    (folder / "images").mkdir()
    for field in settings["fields"]:
        picture = np.asarray(read_image(sources[field["file"]]).array)
        for part, block in split_picture(picture, 1, field["cut"], "second"):
            path = folder / "images" / f"{field['subject']}-part-{part}.png"
            write_picture(path, np.ascontiguousarray(block))
            items[PARTS[part]].append(Item(path.stem, image=path, group=path.stem))
    return items
