"""The networks of the papers: their sizes to the last parameter, and rows that do not see each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modalities import Attributes, Image, Label
from modalities.networks import parameter_count

FACE = Image(64, 64, channels=3, codec="jpg", network="conv", hidden=(512,))
FACES_ATTRIBUTES = Attributes(18)


def test_inference_networks_have_as_many_parameters_as_mvae_table_1() -> None:
    """Images alone are the VAE of the table, both modalities the MVAE."""
    mnist = [parameter_count(modality.encoder(64)) for modality in (Image(28, 28), Label(10))]
    celeba = [parameter_count(modality.encoder(100)) for modality in (FACE, FACES_ATTRIBUTES)]
    assert (mnist[0], sum(mnist)) == (730_240, 1_063_680)
    assert (celeba[0], sum(celeba)) == (4_070_472, 4_447_504)


def test_the_decoder_mirrors_the_encoder() -> None:
    shapes = [tuple(layer.weight.shape) for layer in FACE.encoder(100).modules() if isinstance(layer, nn.Conv2d)]
    mirror = [tuple(m.weight.shape) for m in FACE.decoder(100).modules() if isinstance(m, nn.ConvTranspose2d)]
    assert shapes == [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert mirror == shapes[::-1]
    assert FACE.decoder(100)(torch.zeros(2, 100)).shape == (2, 3 * 64 * 64)


@pytest.mark.parametrize("image", [FACE, Image(32, 40, network="conv", hidden=(8, 4))])
def test_convolutions_take_and_give_pictures(image: Image) -> None:
    value = torch.rand(3, *image.shape)
    mu, logvar = image.encoder(5)(value)
    assert mu.shape == logvar.shape == (3, 5)
    parameters = image.decoder(5)(mu)
    assert image.mean(parameters).shape == value.shape
    assert image.log_likelihood(parameters, value).shape == (3,)


@pytest.mark.parametrize("modality", [FACE, FACES_ATTRIBUTES])
def test_a_row_does_not_depend_on_the_rows_beside_it(modality: Image | Attributes) -> None:
    """Nor on training or evaluation: there are no batch statistics."""
    torch.manual_seed(0)
    value, z = torch.rand(4, *modality.shape), torch.randn(4, 6)
    encoder, decoder = modality.encoder(6).train(), modality.decoder(6).train()
    others = torch.cat([value[:1], torch.zeros(3, *modality.shape)])
    torch.testing.assert_close(encoder(value)[0][0], encoder(others)[0][0])
    torch.testing.assert_close(encoder(value)[0][0], encoder.eval()(value)[0][0])
    torch.testing.assert_close(decoder(z)[0], decoder(torch.cat([z[:1], 9 * z[1:]]))[0])
    assert not [name for network in (encoder, decoder) for name, _ in network.named_buffers()]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (64, 60), (24, 64)])
def test_convolutions_refuse_sizes_that_they_cannot_mirror(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="multiples of 8 from 32"):
        Image(height, width, network="conv")
