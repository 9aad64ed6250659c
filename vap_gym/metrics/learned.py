"""LPIPS and FVD through weights of yours: none are shipped, and without them there is no figure.

LPIPS needs a backbone (torchvision's AlexNet or VGG16) and the five linear layers of the package lpips. FVD needs an
I3D trained on Kinetics-400: StyleGAN-V's TorchScript file, or a state dict of the PyTorch port. The two detectors have
different weights, so that their FVDs cannot be compared.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vap_gym.errors import CheckpointError, VapError
from vap_gym.metrics.backbones import LAYOUTS, LEAST_FRAMES, SIDE_PX, Activations, I3d, Layout
from vap_gym.metrics.checks import Clip, check_clip, check_clips
from vap_gym.metrics.weights import load_weights, read_weights

BACKBONE_FILE = "torchvision's weights of AlexNet (alexnet-owt-7be5be79.pth) or VGG16 (vgg16-397923af.pth)"
LIN_FILE = "the linear layers of LPIPS 0.1 (alex.pth or vgg.pth of lpips/weights/v0.1 in the PyPI package lpips)"
I3D_FILE = "StyleGAN-V's i3d_torchscript.pt, or a pytorch-i3d state dict with 400 classes (rgb_imagenet.pt)"
LEAST_CLIPS = 4  # two halves of two: a covariance needs two

Features = Callable[[Clip], Float[np.ndarray, "D"]]
"""What FVD compares clips by: a clip (T, H, W, 3) → D numbers."""


# --- LPIPS ------------------------------------------------------------------------------------------------------------


class Lpips(nn.Module):
    """Distance of pictures as people see it (Zhang et al. 2018, version 0.1); make one with `load_lpips`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        layout: Layout = LAYOUTS[net]
        self.net_name, self.least_px = net, layout.least_px
        self.net = Activations(layout)
        self.lins = nn.ModuleDict({f"lin{i}": nn.Conv2d(n, 1, 1, bias=False) for i, n in enumerate(layout.channels)})
        # ImageNet's mean and deviation, for pictures in [−1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Return the distance of each pair of pictures in [−1, 1]; 0 where they are equal."""
        distance = torch.zeros(len(a), device=a.device)
        pair = zip(*(self.net((x - self.shift) / self.scale) for x in (a, b)))
        for lin, (left, right) in zip(self.lins.values(), pair):
            difference = (_unit_length(left) - _unit_length(right)).square()
            distance = distance + lin(difference).mean(dim=(1, 2, 3))
        return distance


def load_lpips(backbone: str | Path, lin: str | Path | None = None, *, device: str = "cpu") -> Lpips:
    """Return LPIPS with your weights; AlexNet or VGG16 is told by the backbone's first layer.

    Args:
        backbone: torchvision's state dict of AlexNet or VGG16; or one file with everything, as the package lpips
            saves its whole module (`net.slice1.0.weight` …, `lin0.model.1.weight` …).
        lin: the five linear layers (`lin0.model.1.weight` … `lin4.model.1.weight`), if the first file lacks them.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks a weight, or the two belong to different networks.
    """
    tensors = read_weights(backbone, wanted=BACKBONE_FILE)
    if lin is not None:
        tensors = {**tensors, **read_weights(lin, wanted=LIN_FILE)}
    tensors = {re.sub(r"^net\.slice\d+\.", "features.", key): value for key, value in tensors.items()}
    first = tensors.get("features.0.weight")
    shapes: dict[tuple[int, ...], str] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
    net = shapes.get(tuple(first.shape)) if first is not None else None
    if net is None:
        given = "no features.0.weight" if first is None else f"features.0.weight of shape {tuple(first.shape)}"
        raise CheckpointError(f"'{backbone}' must be AlexNet or VGG16, got {given}. Give {BACKBONE_FILE}.")
    if "lin0.model.1.weight" not in tensors:
        raise CheckpointError(
            f"LPIPS needs five linear layers beside its backbone, got none in '{lin or backbone}'. "
            f"Give, as second file (--lpips-lin), {LIN_FILE}."
        )
    model = Lpips(net)
    load_weights(model.net, tensors, source=f"'{backbone}' (taken for {net})", wanted=BACKBONE_FILE)
    lins = {f"lin{i}.weight": tensors[key] for i in range(5) if (key := f"lin{i}.model.1.weight") in tensors}
    load_weights(model.lins, lins, source=f"'{lin or backbone}' (for {net})", wanted=f"{LIN_FILE}, of the same network")
    return model.to(device).eval()


def lpips_per_frame(prediction: Clip, truth: Clip, model: Lpips, *, batch: int = 8) -> Float[np.ndarray, "T"]:
    """Return the LPIPS of each frame, at the frames' own size: 0 where they are equal, above about .6 little alike.

    Raises:
        VapError: clips of other types or of different shapes, or frames too small for the network.
    """
    check_clips(prediction, truth)
    height, width = truth.shape[1:3]
    if min(height, width) < model.least_px:
        raise VapError(
            f"LPIPS ({model.net_name}) needs frames of at least {model.least_px} px a side, got {width} x {height}. "
            "Enlarge both clips (--resize)."
        )
    distances = []
    with torch.no_grad():
        for t in range(0, len(truth), batch):
            a, b = (_in_unit_box(clip[t : t + batch], model.shift.device) for clip in (prediction, truth))
            distances.append(model(a, b).double().cpu().numpy())
    return np.concatenate(distances)


def _unit_length(x: Tensor) -> Tensor:
    """Divide the channels of every pixel by their length."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _in_unit_box(frames: Clip, device: torch.device) -> Tensor:
    """uint8 (T, H, W, 3) → float (T, 3, H, W) in [−1, 1]."""
    whole = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return whole.permute(0, 3, 1, 2).float() / 127.5 - 1


# --- FVD --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fvd:
    """A Fréchet video distance, and what it has to be compared with.

    FVD is biased: with few clips, two draws of the *same* videos score hundreds. So it never stands alone: `floor` is
    what one half of the real clips scores against the other, `value_at_floor` what as many generated clips score
    against as many real ones. Compare `value` only at equal N and T, and with the same detector.
    """

    value: float  # N generated against N real clips
    clips: int  # N
    frames: int  # T of every clip
    value_at_floor: float  # N // 2 generated against N // 2 real clips, mean over random halves
    floor: float  # N // 2 real against N // 2 other real clips, mean over random halves
    floor_clips: int  # N // 2
    detector: str

    def __str__(self) -> str:
        """Return e.g. "512 (N=64, T=16); at N=32: 702, real against real 655; i3d torchscript"."""
        return (
            f"{self.value:.4g} (N={self.clips}, T={self.frames}); at N={self.floor_clips}: {self.value_at_floor:.4g}, "
            f"real against real {self.floor:.4g}; {self.detector}"
        )


def load_i3d(path: str | Path, *, batch_norm_eps: float = 1e-3, device: str = "cpu") -> Detector:
    """Return the 400 Kinetics logits of I3D as features, with your weights.

    A TorchScript file is a program: give only one that you trust. A state dict is read without running anything.

    Args:
        path: StyleGAN-V's i3d_torchscript.pt, or a state dict of the PyTorch port.
        batch_norm_eps: of a state dict, which does not say it: 1e-3 for rgb_imagenet.pt, but 1e-5 for the file
            i3d_pretrained_400.pt of TATS, which has the same keys.
        device: where the network runs.

    Raises:
        CheckpointError: the file is missing or damaged, lacks a weight, or does not have 400 classes.
    """
    path = Path(path)
    if path.is_file() and _is_torchscript(path):
        try:
            script = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            told = str(error).strip().split("\n")[0][:160]
            raise CheckpointError(f"'{path}' is no whole TorchScript file: {told}. Fetch {I3D_FILE} anew.") from error
        return Detector(
            "i3d torchscript", lambda x: script(x, rescale=False, resize=False, return_features=True), device
        )
    model = I3d(batch_norm_eps=batch_norm_eps)
    load_weights(model, read_weights(path, wanted=I3D_FILE), source=f"'{path}'", wanted=I3D_FILE)
    return Detector(f"pytorch-i3d, eps {batch_norm_eps:g}", model.to(device), device)


def fvd(generated: Sequence[Clip], real: Sequence[Clip], features: Features, *, splits: int = 10, seed: int = 0) -> Fvd:
    """Return the Fréchet distance of N generated from N real clips, beside a real-against-real floor.

    Args:
        generated, real: N clips each, N at least 4; all of one length, of any frame size.
        features: `load_i3d(path)`, or any function of a clip.
        splits: how many times the clips are halved at random, by `seed`, for the floor.

    Raises:
        VapError: other numbers of clips, clips of several lengths, or features that are not finite.
    """
    if len(generated) != len(real) or len(real) < LEAST_CLIPS:
        raise VapError(
            f"FVD needs as many generated as real clips, at least {LEAST_CLIPS} each, got {len(generated)} and "
            f"{len(real)}. It depends on N: leave out some of the larger set; thousands are usual, dozens say little."
        )
    for name, clips in (("generated", generated), ("real", real)):
        for i, clip in enumerate(clips):
            check_clip(clip, f"{name}[{i}]")
    lengths = sorted({len(clip) for clip in (*generated, *real)})
    if len(lengths) > 1:
        raise VapError(f"FVD needs clips of one length, got {lengths} frames. Cut all to {lengths[0]} (--frames).")
    fake, true = (np.stack([features(clip) for clip in clips]) for clips in (generated, real))
    name = features.name if isinstance(features, Detector) else "features of yours"
    return fvd_of_features(fake, true, frames=lengths[0], detector=name, splits=splits, seed=seed)


def fvd_of_features(
    generated: Float[np.ndarray, "N D"],
    real: Float[np.ndarray, "N D"],
    *,
    frames: int,
    detector: str,
    splits: int = 10,
    seed: int = 0,
) -> Fvd:
    """As `fvd`, from the features of clips that are too many to be held at once; `frames` is their length.

    Raises:
        VapError: fewer than 4 clips, or features that are not finite.
    """
    if len(real) < LEAST_CLIPS:
        raise VapError(f"FVD needs at least {LEAST_CLIPS} clips a side, got {len(real)}. Thousands are usual.")
    fake, true = generated.astype(np.float64), real.astype(np.float64)
    if not (np.isfinite(fake).all() and np.isfinite(true).all()):
        raise VapError("FVD's features must be finite, got NaN or infinities. Are these the weights of a trained I3D?")
    rng, half = np.random.default_rng(seed), len(true) // 2
    values, floors = [], []
    for _ in range(splits):
        order, pick = rng.permutation(len(true)), rng.permutation(len(fake))[:half]
        one, other = true[order[:half]], true[order[half : 2 * half]]
        floors.append(frechet_distance(one, other))
        values.append(frechet_distance(fake[pick], one))
    return Fvd(
        value=frechet_distance(fake, true),
        clips=len(true),
        frames=frames,
        value_at_floor=float(np.mean(values)),
        floor=float(np.mean(floors)),
        floor_clips=half,
        detector=detector,
    )


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """Return |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½) of two sets of rows, in float64.

    Covariances are divided by the number of rows, as StyleGAN-V does. With Σ = RᵀR from a QR decomposition,
    tr (Σa Σb)^½ is the sum of the singular values of Ra Rbᵀ: exact also with fewer rows than columns, where roots of
    the singular product are not.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    means = [x.mean(axis=0) for x in (a, b)]
    roots = [np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x)), mode="r")) for x, mean in zip((a, b), means)]
    common = float(np.linalg.norm(roots[0] @ roots[1].T, ord="nuc"))
    spread = sum(float(np.square(root).sum()) for root in roots)
    return max(0.0, float(np.square(means[0] - means[1]).sum()) + spread - 2 * common)


class Detector:
    """A clip → its logits: frames stretched to 224 × 224 (bilinear), in [−1, 1]."""

    def __init__(self, name: str, network: Callable[[Tensor], Tensor], device: str) -> None:
        self.name, self.network, self.device = name, network, torch.device(device)

    def __call__(self, clip: Clip) -> Float[np.ndarray, "D"]:
        if len(clip) < LEAST_FRAMES:
            raise VapError(f"I3D needs clips of at least {LEAST_FRAMES} frames, got {len(clip)}. Give longer clips.")
        frames = F.interpolate(_in_unit_box(clip, self.device), (SIDE_PX, SIDE_PX), mode="bilinear")
        try:
            with torch.no_grad():
                logits = self.network(frames.transpose(0, 1)[None])
        except RuntimeError as error:  # a TorchScript program that takes no such clip
            raise CheckpointError(
                f"The {self.name} cannot read a clip of {tuple(clip.shape)}: {str(error).strip().splitlines()[-1]}. "
                f"Give {I3D_FILE}."
            ) from error
        row = logits.double().cpu().numpy()
        if row.ndim != 2 or len(row) != 1:
            raise CheckpointError(f"The {self.name} must give (1, D) logits, got {row.shape}. Give {I3D_FILE}.")
        return np.asarray(row[0])


def _is_torchscript(path: Path) -> bool:
    """Both kinds of file are zip archives; only a program has code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
