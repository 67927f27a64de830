"""Images as a network wants them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from isthmus.errors import BadInput
from isthmus.network import ImageInput, Network, encode, pool
from isthmus.pixels import pixel_values

GREY = ImageInput(1, 4, 4, (0.5,), (0.5,))
COLOUR = ImageInput(3, 4, 4, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_values_are_scaled_and_normalised_by_channel():
    given = images(3, 4, 4, 3)
    found = pixel_values(COLOUR, given)
    wanted = (given / 255 - np.array(COLOUR.mean)) / np.array(COLOUR.std)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-6)


def test_grey_becomes_colour_and_colour_grey():
    grey = images(2, 4, 4)
    plain = ImageInput(3, 4, 4, (0.0,) * 3, (1.0,) * 3)
    np.testing.assert_allclose(pixel_values(plain, grey).numpy() * 255, grey[:, None].repeat(3, 1), atol=1e-4)
    np.testing.assert_array_equal(pixel_values(plain, grey), pixel_values(plain, grey[..., None]))
    colour = images(2, 4, 4, 4)  # how opaque a pixel is does not count
    wanted = np.rint(colour[..., 0] * 0.299 + colour[..., 1] * 0.587 + colour[..., 2] * 0.114)
    found = pixel_values(ImageInput(1, 4, 4, (0.0,), (1.0,)), colour).numpy()[:, 0] * 255
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_mixed_sizes_keep_their_order():
    small, large = images(4, 4), images(9, 7)
    both = pixel_values(GREY, [large, small, large])
    assert both.shape == (3, 1, 4, 4)
    torch.testing.assert_close(both[0], both[2], rtol=0, atol=0)
    torch.testing.assert_close(both[1:2], pixel_values(GREY, [small]), rtol=0, atol=0)


def test_halving_is_the_weighted_mean_of_what_is_covered():
    given = images(1, 8, 8)
    found = pixel_values(ImageInput(1, 4, 4, (0.0,), (1.0,)), given)[0, 0].numpy() * 255
    # A triangle of twice the width: weights 1, 3, 3, 1 over four pixels, cut and normalised at the edges.
    line = np.zeros((4, 8))
    for place in range(4):
        for offset, weight in zip(range(-1, 3), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * place + offset < 8:
                line[place, 2 * place + offset] = weight
        line[place] /= line[place].sum()
    np.testing.assert_allclose(found, line @ given[0] @ line.T, atol=0.51)


def test_the_middle_is_cut_out():
    given = images(1, 4, 10)
    found = pixel_values(ImageInput(1, 4, 4, (0.0,), (1.0,), shortest_edge=4), given)[0, 0].numpy() * 255
    np.testing.assert_allclose(found, given[0][:, 3:7], atol=1e-3)


@pytest.mark.parametrize(
    "given",
    [np.zeros((2, 4, 4)), np.zeros((2, 4, 4, 5), np.uint8), np.zeros((2, 4), np.uint8), np.zeros((0, 4, 4), np.uint8)],
)
def test_what_is_no_image_is_refused(given):
    with pytest.raises(BadInput):
        pixel_values(GREY, given)


@pytest.mark.parametrize(
    "arguments",
    [(0, 4, 4, (), ()), (1, 4, 4, (0.5,), (0.0,)), (3, 4, 4, (0.5,), (0.5,)), (1, 4, 4, (0.0,), (1.0,), None, "sinc")],
)
def test_inputs_out_of_range_are_refused(arguments):
    with pytest.raises(BadInput):
        ImageInput(*arguments)


def test_a_network_encodes_and_pools_images():
    network = Network("n", torch.nn.Identity(), None, "mean", False, images=GREY)
    assert list(encode(network, images(2, 4, 4))) == ["pixel_values"]

    class Output:
        last_hidden_state = torch.rand(2, 5, 3, 3)

    torch.testing.assert_close(
        pool(network, Output, None), F.adaptive_avg_pool2d(Output.last_hidden_state, 1).flatten(1)
    )
    Output.last_hidden_state = torch.rand(2, 7, 5)
    torch.testing.assert_close(pool(network, Output, None), Output.last_hidden_state.mean(1))
