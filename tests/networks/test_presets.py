import pytest

from medcoss_components.errors import InputError
from medcoss_components.networks.presets import PRESETS, resolve_preset


def test_the_three_presets_have_the_sizes_of_the_design():
    sizes = {name: (p.width, p.depth, p.heads, p.decoder_width, p.decoder_depth) for name, p in PRESETS.items()}
    assert sizes == {
        "vit_base": (768, 12, 12, 512, 8),
        "vit_small": (384, 12, 6, 256, 4),
        "demo": (128, 4, 4, 128, 2),
    }
    assert [PRESETS[name].layer_scale for name in PRESETS] == [1e-3, 0.1, 0.5]


def test_overrides_replace_fields_and_none_keeps_them():
    preset = resolve_preset("demo", width=48, vocabulary_size=None, patch_2d=[4, 6])
    assert (preset.width, preset.vocabulary_size, preset.patch_2d) == (48, 4_000, (4, 6))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("huge", {}, "preset='huge' is unknown. Use one of vit_base, vit_small, demo"),
        ("demo", {"breadth": 4}, "breadth: not a size"),
        ("demo", {"heads": 5}, "width=128 must be a multiple of heads=5"),
        ("demo", {"decoder_heads": 0}, "multiple of decoder_heads=0"),
        ("demo", {"stochastic_depth": 1.0}, "stochastic_depth=1.0"),
        ("demo", {"patch_3d": (4, 4)}, r"patch_3d=\(4, 4\) must hold 3"),
        ("demo", {"grid_2d": (0, 4)}, r"grid_2d=\(0, 4\) must hold 2 positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, overrides, message):
    with pytest.raises(InputError, match=message):
        resolve_preset(name, **overrides)
