"""The networks of the papers: their sizes to the last parameter, rows that do not see each other, no waiting."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from modalities import Attributes, Image, Label, Modality, Text
from modalities.image import LEAST_SIDE
from modalities.networks import CONVOLUTIONS, JointEncoder, parameter_count
from modalities.text import Tokens
from tests.modalities.cases import CASES

FACE = Image(64, 64, channels=3, codec="jpg", network="conv", hidden=(512,))
FACES_ATTRIBUTES = Attributes(18)
CLOTHES = Image(28, 28, network="conv-shallow", hidden=(512,))
DIGITS = Image(50, 50, network="conv-strided", hidden=(512,))
NUMBER = Text(vocabulary=12, length=5)
ODD = [
    Image(32, 40, network="conv", hidden=(8, 4)),
    Image(33, 47, network="conv", hidden=(8,), channels=3),
    Image(35, 54, network="conv-strided", hidden=(8,)),
    Image(5, 7, network="conv-shallow", hidden=(8, 4), channels=3),
]
MVAES = [FACE, CLOTHES, DIGITS, *ODD]
"""With the networks of MVAE, whose decoders mirror the encoders."""
SVAES = [
    Image(32, 32, channels=3, network="conv-svhn", hidden=()),
    Image(17, 9, network="conv-svhn", hidden=(12, 8)),
    Image(14, 28, network="conv-split", hidden=(786,)),
    Image(9, 28, network="conv-split", hidden=(786,), likelihood="laplace"),
    Image(33, 47, channels=3, network="conv-split", hidden=(), likelihood="gaussian", scale=0.1),
]
IMAGES = [*MVAES, *SVAES]
KINDS = {
    **{name: case.modality for name, case in CASES.items()},
    **{f"{image.network} {image.height}x{image.width}": image for image in IMAGES},
    "attributes of faces": FACES_ATTRIBUTES,
    "number": NUMBER,
}


def some(modality: Modality, rows: int) -> Tensor:
    """Random values; texts of all lengths."""
    if isinstance(modality, Label):
        return torch.randint(modality.classes, (rows,))
    if isinstance(modality, Tokens):
        tokens = torch.randint(2, modality.vocabulary, (rows, modality.length))
        read = 1 + torch.arange(rows)[:, None] % (modality.length - 1)
        return torch.where(torch.arange(modality.length) < read, tokens, 0)
    return torch.rand(rows, *modality.shape)


def test_inference_networks_have_as_many_parameters_as_mvae_table_1() -> None:
    """Images alone are the VAE of the table, both modalities the MVAE; JMVAE has a joint network besides."""
    table = {
        "MNIST": (Image(28, 28), Label(10), 64, (730_240, 1_063_680, 2_061_184)),
        "FashionMNIST": (CLOTHES, Label(10), 64, (3_409_536, 3_742_976, 7_682_432)),
        # The table has 4,075,064 for JMVAE, 66,336 more; no paper says what its joint network does with a text.
        "MultiMNIST": (DIGITS, NUMBER, 100, (1_316_936, 1_841_936, 4_008_728)),
        "CelebA": (FACE, FACES_ATTRIBUTES, 100, (4_070_472, 4_447_504, 9_052_504)),
    }
    for name, (image, other, latent, counts) in table.items():
        vae, second = (parameter_count(modality.encoder(latent)) for modality in (image, other))
        joint = parameter_count(JointEncoder([image.features(), other.features()], latent))
        assert (vae, vae + second, vae + second + joint) == counts, name


def test_the_parameters_of_mvae19() -> None:
    """The table's 10,857,048 has 18 inputs in each of the 18 networks, which see one attribute each."""
    image, one, eighteen = (parameter_count(kind.encoder(100)) for kind in (FACE, Attributes(1), Attributes(18)))
    assert image + 18 * one == 10_700_376
    assert image + 18 * eighteen == 10_857_048
    assert eighteen - one == 17 * 512


@pytest.mark.parametrize("image", MVAES)
def test_the_decoder_mirrors_the_encoder(image: Image) -> None:
    """Channels and sizes backwards; kernels too, but for a pixel more where halving left one over."""
    inwards = layers_of(image.encoder(6), torch.rand(2, *image.shape))
    decoder, z = image.decoder(6), torch.randn(2, 6)
    outwards = layers_of(decoder, z)
    for (large, small, there), (before, after, back) in zip(reversed(inwards), outwards, strict=True):
        assert (small, large) == (before, after)
        assert there.weight.shape[:2] == back.weight.shape[:2]
        assert there.bias is back.bias is None
        assert (there.stride, there.padding) == (back.stride, back.padding)
        assert there.kernel_size == (4, 4)
        assert back.kernel_size == tuple(4 + side % there.stride[0] for side in large[1:])
    logits = decoder(z)
    outwards[-1][2].weight.data.neg_()
    torch.testing.assert_close(decoder(z), -logits)  # no activation at the end


def layers_of(network: nn.Module, value: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...], nn.Conv2d]]:
    """Each convolution, or deconvolution, with (C, Y, X) before and after it."""
    found = []

    def note(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        found.append((tuple(inputs[0].shape[1:]), tuple(output.shape[1:]), layer))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(note)
    network(value)
    return found


def test_convolutions_leave_what_the_papers_have() -> None:
    last = {image: layers_of(image.encoder(6), torch.rand(1, *image.shape))[-1][1] for image in (FACE, CLOTHES, DIGITS)}
    assert last == {FACE: (256, 5, 5), CLOTHES: (128, 7, 7), DIGITS: (256, 2, 2)}


def test_the_smallest_pictures_of_each_network() -> None:
    assert set(LEAST_SIDE) == {"mlp", *CONVOLUTIONS}
    for network in CONVOLUTIONS:
        least = LEAST_SIDE[network]
        image = Image(least, least, network=network, hidden=(8,))
        assert layers_of(image.encoder(3), torch.rand(1, least, least))[-1][1][1:] == (1, 1)
        assert reduce(lambda side, layer: layer.size(side), CONVOLUTIONS[network].convolutions, least - 1) == 0
        with pytest.raises(ValueError, match=f"network {network} takes pictures from {least} x {least} pixels"):
            Image(least, least - 1, network=network)


@pytest.mark.parametrize("image", IMAGES)
def test_convolutions_take_and_give_pictures(image: Image) -> None:
    value = torch.rand(3, *image.shape)
    mu, logvar = image.encoder(5)(value)
    assert mu.shape == logvar.shape == (3, 5)
    parameters = image.decoder(5)(mu)
    assert image.mean(parameters).shape == value.shape
    assert image.log_likelihood(parameters, value).shape == (3,)


@pytest.mark.parametrize("modality", [*IMAGES, FACES_ATTRIBUTES])
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


@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    modality = KINDS[name]
    torch.manual_seed(0)
    value, z = some(modality, 6), torch.randn(6, 3)
    encoder, joint, decoder = modality.encoder(3), JointEncoder([modality.features()], 3), modality.decoder(3)
    for network, loss in (
        (encoder, torch.cat(encoder(value)).square().sum()),
        (joint, torch.cat(joint(value)).square().sum()),
        (decoder, modality.log_likelihood(decoder(z), value).sum()),
    ):
        loss.backward()
        assert not [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_waits_for_the_device(name: str) -> None:
    """The meta device has no numbers: whatever asked it for one would raise here, and hold up an accelerator."""
    modality = KINDS[name]
    value, z = some(modality, 6).to("meta"), torch.randn(6, 3, device="meta")
    mu, logvar = modality.encoder(3).to("meta")(value)
    assert mu.shape == logvar.shape == JointEncoder([modality.features()], 3).to("meta")(value)[0].shape == (6, 3)
    parameters = modality.decoder(3).to("meta")(z)
    assert modality.log_likelihood(parameters, value).shape == (6,)
    assert modality.mean(parameters).shape == value.shape
    modality.log_likelihood(parameters, value).sum().backward()
