import pytest
import torch

from medcoss_components.errors import InputError
from medcoss_components.networks.deeplab import DeepLabHead
from medcoss_components.networks.initialisation import initialise


def head(**arguments):
    network = DeepLabHead(**({"channels": 5, "regions": 2, "width": 4} | arguments))
    initialise(network, torch.Generator().manual_seed(1))
    return network


def maps(count=2, sides=(7, 9)):
    return torch.randn(count, 5, *sides, generator=torch.Generator().manual_seed(2))


def test_one_map_of_logits_per_region_at_the_size_of_the_image():
    logits = head()(maps(), (100, 140))
    assert logits.shape == (2, 2, 100, 140) and logits.dtype == torch.float32


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_an_atrous_branch_reads_every_rate_th_place(rate):
    """Against loops: out(r, c) = sum over taps of weight * in(r + rate * (i - 1), c + rate * (j - 1)), 0 outside."""
    branch = head(rates=(rate,)).eval().branches[1]
    given = maps(1)[0]
    kernel = branch[0].weight
    expected = torch.zeros(4, 7, 9)
    for row in range(7):
        for column in range(9):
            for i in range(3):
                for j in range(3):
                    y, x = row + rate * (i - 1), column + rate * (j - 1)
                    if 0 <= y < 7 and 0 <= x < 9:
                        expected[:, row, column] += kernel[:, :, i, j] @ given[:, y, x]
    found = branch(given[None])[0] * (1 + branch[1].eps) ** 0.5  # fresh batch norm: mean 0, variance 1
    torch.testing.assert_close(found, expected.clamp(min=0), atol=1e-5, rtol=1e-4)


def test_rates_of_the_paper():
    assert [branch[0].dilation for branch in head().branches] == [(1, 1), (6, 6), (12, 12), (18, 18)]
    assert head().projection[0].in_channels == 5 * 4  # four branches and the image


def test_the_mean_of_the_image_reaches_every_place():
    network = head().eval()
    seen = []
    network.projection.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(maps(), (7, 9))
    image = seen[0][:, 16:]
    assert image.shape == (2, 4, 7, 9)
    expected = network.image(maps().mean(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(image[:, :, 3, 4], expected[:, :, 0, 0])
    torch.testing.assert_close(image[:, :, 0, 0], image[:, :, 6, 8])


def test_the_logits_are_interpolated():
    network = head().eval()
    small, large = network(maps(), (7, 9)), network(maps(), (14, 18))
    # Half a place on: three quarters of the nearer one, one quarter of the next, along both axes.
    expected = (9 * small[0, 0, 1, 1] + 3 * small[0, 0, 1, 2] + 3 * small[0, 0, 2, 1] + small[0, 0, 2, 2]) / 16
    torch.testing.assert_close(large[0, 0, 3, 3], expected)


def test_a_batch_of_one_trains():
    network = head().train()
    network(maps(1), (20, 20)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_bfloat16():
    network = head().eval()
    exact = network(maps(), (20, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(maps(), (20, 20))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("arguments", [{"width": 0}, {"rates": (6, 0)}, {"regions": 0}])
def test_sizes_below_1_are_refused(arguments):
    with pytest.raises(InputError, match="all must be at least 1"):
        head(**arguments)
