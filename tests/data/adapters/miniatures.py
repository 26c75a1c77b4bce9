"""What miniatures of several data sets share: pictures of noise, and the source that a recipe's adapter is given."""

from __future__ import annotations

from functools import cache

import numpy as np

from medcoss_components.data.adapters.dataset_recipe import dataset_recipe
from medcoss_components.data.adapters.findings import DatasetSource
from medcoss_components.data.modalities import get_modality
from medcoss_components.data.writers import write_picture

_recipe = cache(dataset_recipe)  # reading one takes a while


def save_noise(path, seed, size):
    """A grey picture of ``size`` (H, W), in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8))


def recipe_source(name, root, *, files_dir=None, **settings):
    """The source of a recipe, some of whose settings are replaced."""
    recipe = _recipe(name)
    return DatasetSource(
        root=root,
        modality=get_modality(recipe.modality),
        files_dir=files_dir or root / "made.files",
        settings={**recipe.settings, **settings},
        workers=1,
    )
