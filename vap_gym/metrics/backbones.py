"""Networks that learned metrics look through: AlexNet and VGG16 up to their last activation, and I3D.

Only the shapes and key names are given here; the weights are yours. Keys are those of torchvision's classifiers
(`features.0.weight` …) and of the PyTorch port of I3D (`Mixed_3b.b1a.conv3d.weight` …).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A chain of convolutions: its layers, after which of them it is read, and the smallest frame that fits.

    A layer is (channels, kernel, stride, padding), followed by a ReLU, or (kernel, stride) of a max pooling.
    """

    layers: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]  # numbers of layers as torchvision counts them, ReLUs too
    channels: tuple[int, ...]  # at the taps
    least_px: int


def _vgg16() -> Layout:
    layers: list[tuple[int, ...]] = []
    for block, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [*([(2, 2)] if block else []), *([(channels, 3, 1, 1)] * count)]
    return Layout(layers=tuple(layers), taps=(3, 8, 15, 22, 29), channels=(64, 128, 256, 512, 512), least_px=16)


LAYOUTS = {
    "alex": Layout(
        layers=((64, 11, 4, 2), (3, 2), (192, 5, 1, 2), (3, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
        taps=(1, 4, 7, 9, 11),
        channels=(64, 192, 384, 256, 256),
        least_px=31,
    ),
    "vgg": _vgg16(),
}


class Activations(nn.Module):
    """A chain of convolutions that returns what it holds at its taps."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.taps = layout.taps
        self.features = nn.Sequential()
        width = 3
        for layer in layout.layers:
            if len(layer) == 2:
                self.features.append(nn.MaxPool2d(*layer))
            else:
                self.features.append(nn.Conv2d(width, layer[0], layer[1], stride=layer[2], padding=layer[3]))
                self.features.append(nn.ReLU())
                width = layer[0]

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return the activations at the taps, each (B, channels, height, width)."""
        seen = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                seen.append(x)
        return seen


# I3D (Carreira and Zisserman 2017): input channels, then those of the four branches (1×1; 1×1, 3×3; 1×1, 3×3; pooled).
INCEPTIONS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
POOLED_BEFORE = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}
LEAST_FRAMES = 9  # three halvings, rounded up, must leave the two frames that the last pooling spans
SIDE_PX = 224


class I3d(nn.Module):
    """Inflated Inception: clips → logits of the 400 Kinetics actions, averaged over time."""

    def __init__(self, classes: int = 400, *, batch_norm_eps: float = 1e-3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, widths in INCEPTIONS.items():
            self.add_module(name, _Inception(*widths))
        self.logits = _Logits(1024, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = batch_norm_eps

    def forward(self, clips: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B classes"]:
        """Return the logits of clips in [−1, 1] of 224 × 224 px and at least 9 frames."""
        x = _pooled(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = _pooled(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in INCEPTIONS:
            if name in POOLED_BEFORE:
                x = _pooled(x, *POOLED_BEFORE[name])
            x = self.get_submodule(name)(x)
        logits: Tensor = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))
        return logits


class _Unit(nn.Module):
    """Convolution padded as TensorFlow's "SAME", batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        return F.relu(self.bn(self.conv3d(_padded(x, kernel, stride))))


class _Inception(nn.Module):
    def __init__(self, inputs: int, one: int, in1: int, out1: int, in2: int, out2: int, pooled: int) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, one, 1)
        self.b1a, self.b1b = _Unit(inputs, in1, 1), _Unit(in1, out1, 3)
        self.b2a, self.b2b = _Unit(inputs, in2, 1), _Unit(in2, out2, 3)
        self.b3b = _Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pooled(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


class _Logits(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv3d(x)
        return logits


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad by zeros so that a window's output is the input's size over the stride, rounded up; odd pixels go last."""
    sides: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride):
        extra = max((-(-size // s) - 1) * s + k - size, 0)
        sides = [extra // 2, extra - extra // 2, *sides]  # F.pad counts from the last axis
    return F.pad(x, sides)


def _pooled(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(_padded(x, kernel, stride), kernel, stride)
