"""ResNet-101 (He et al., 2016) up to its pooled features, with torchvision's names, so that its weights fit."""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = (3, 4, 23, 3)
"""How many each of the four stages has."""
GROWTH = 4
"""A block's channels outside, per channel inside."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a way around them; where it halves the picture, the 3x3 does."""

    def __init__(self, channels: int, inside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, GROWTH * inside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(GROWTH * inside)
        self.downsample: nn.Module = nn.Identity()
        if channels != GROWTH * inside:
            around = nn.Conv2d(channels, GROWTH * inside, 1, stride, bias=False)
            self.downsample = nn.Sequential(around, nn.BatchNorm2d(GROWTH * inside))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x_BCHW)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y)) + self.downsample(x_BCHW)
        return y.relu()


class ResNet101(nn.Module):
    """(B, 3, H, W) -> (B, 2048); torchvision's without its last layer, `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for number, blocks in enumerate(BLOCKS):
            inside, stage = 64 * 2**number, nn.Sequential()
            for block in range(blocks):
                stage.append(Bottleneck(channels, inside, stride=2 if number and not block else 1))
                channels = GROWTH * inside
            self.add_module(f"layer{number + 1}", stage)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.maxpool(self.bn1(self.conv1(x_BCHW)).relu())
        for number in range(len(BLOCKS)):
            y = self.get_submodule(f"layer{number + 1}")(y)
        return y.mean((2, 3))
