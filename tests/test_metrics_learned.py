"""LPIPS and FVD: what any weights must give, key layouts that are read, weights that are refused, distances that hold.

The weights here are random and only have the layouts of the real ones. With the networks' reference code and the same
random weights, LPIPS (both backbones) and I3D were compared once, outside of the tests: equal to the last bit.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor, nn

from vap_gym.errors import CheckpointError, VapError
from vap_gym.metrics.backbones import INCEPTIONS, I3d
from vap_gym.metrics.learned import (
    Lpips,
    frechet_distance,
    fvd,
    load_i3d,
    load_lpips,
    lpips_per_frame,
)

# Convolutions as torchvision numbers them: (number, outputs, inputs, kernel).
ALEX = ((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3))
VGG = (
    (0, 64, 3, 3), (2, 64, 64, 3), (5, 128, 64, 3), (7, 128, 128, 3), (10, 256, 128, 3), (12, 256, 256, 3),
    (14, 256, 256, 3), (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3), (26, 512, 512, 3),
    (28, 512, 512, 3),
)  # fmt: skip
LINS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def random_clip(seed: int, frames: int = 3, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def backbone(net: str) -> dict[str, Tensor]:
    """A random state dict as torchvision's classifiers have it, head included."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for number, outputs, inputs, kernel in ALEX if net == "alex" else VGG:
        shape, fan = (outputs, inputs, kernel, kernel), inputs * kernel**2
        tensors[f"features.{number}.weight"] = torch.randn(shape, generator=rng) * (2 / fan) ** 0.5
        tensors[f"features.{number}.bias"] = torch.zeros(outputs)
    return {**tensors, "classifier.6.weight": torch.zeros(1000, 8)}


def lins(net: str) -> dict[str, Tensor]:
    """Random linear layers as the package lpips keeps them: positive, shape (1, channels, 1, 1)."""
    rng = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=rng) for i, n in enumerate(LINS[net])}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alex.pth, alex_lin.pth, alex_lin.safetensors and vgg.safetensors, vgg_lin.safetensors."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(backbone("alex"), folder / "alex.pth")
    torch.save(lins("alex"), folder / "alex_lin.pth")
    save_file(lins("alex"), folder / "alex_lin.safetensors")
    save_file(backbone("vgg"), folder / "vgg.safetensors")
    save_file(lins("vgg"), folder / "vgg_lin.safetensors")
    return folder


@pytest.fixture(scope="module")
def alex(files: Path) -> Lpips:
    return load_lpips(files / "alex.pth", files / "alex_lin.pth")


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random state dict of pytorch-i3d, without the batch norms' counters, as the distributed file is."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for key, value in I3d().state_dict().items():
        if value.ndim == 5:
            tensors[key] = torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5
        elif not key.endswith("num_batches_tracked"):
            tensors[key] = torch.ones_like(value) if key.endswith(("var", "weight")) else torch.zeros_like(value)
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt"
    torch.save(tensors, path)
    return path


class TinyDetector(nn.Module):
    """The call that StyleGAN-V's TorchScript file answers, in small: means of six blocks of a clip."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert return_features
        assert not resize
        assert not rescale
        assert x.shape[3] == 224
        return nn.functional.adaptive_avg_pool3d(x, (1, 1, 2)).flatten(1)


# --- LPIPS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_a_distance(files: Path, net: str) -> None:
    ending = "pth" if net == "alex" else "safetensors"
    model = load_lpips(files / f"{net}.{ending}", files / f"{net}_lin.{ending}")
    assert model.net_name == net
    a, b = random_clip(0, 2), random_clip(1, 2)
    near = np.clip(a.astype(int) + np.random.default_rng(2).integers(-9, 10, a.shape), 0, 255).astype(np.uint8)
    far = lpips_per_frame(a, b, model)
    assert far.shape == (2,)
    np.testing.assert_array_equal(lpips_per_frame(a, a, model), 0)
    np.testing.assert_allclose(far, lpips_per_frame(b, a, model), rtol=1e-5)
    assert (lpips_per_frame(near, a, model) > 0).all()
    assert (lpips_per_frame(near, a, model) < 0.6 * far).all()


def test_lpips_is_what_its_formula_says(alex: Lpips) -> None:
    """Zhang et al., Eq. 1, written out once more: unit-length channels, squared, weighed, averaged, summed."""
    state, lin = backbone("alex"), lins("alex")
    a, b = random_clip(0, 1), random_clip(1, 1)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])

    def stages(clip: np.ndarray) -> list[Tensor]:
        x = torch.from_numpy(((clip / 127.5 - 1 - shift) / scale).transpose(0, 3, 1, 2)).float()
        seen = []
        for i, (number, _, _, kernel) in enumerate(ALEX):
            x = nn.functional.max_pool2d(x, 3, 2) if i in (1, 2) else x
            stride, padding = (4, 2) if i == 0 else (1, kernel // 2)
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            x = nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding).relu()
            seen.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-9))
        return seen

    wanted = sum(
        float(((left - right).square() * lin[f"lin{i}.model.1.weight"]).sum(1).mean())
        for i, (left, right) in enumerate(zip(stages(a), stages(b)))
    )
    assert lpips_per_frame(a, b, alex)[0] == pytest.approx(wanted, rel=1e-4)


def test_lpips_reads_one_file_as_the_package_saves_itself(files: Path, alex: Lpips, tmp_path: Path) -> None:
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    whole = dict(lins("alex"))
    for number, _, _, _ in ALEX:
        for part in ("weight", "bias"):
            whole[f"net.slice{slices[number]}.{number}.{part}"] = backbone("alex")[f"features.{number}.{part}"]
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in whole.items()}}, tmp_path / "w.pt")
    a, b = random_clip(0), random_clip(1)
    of_whole = lpips_per_frame(a, b, load_lpips(tmp_path / "w.pt"))
    np.testing.assert_array_equal(of_whole, lpips_per_frame(a, b, alex))
    np.testing.assert_allclose(of_whole, lpips_per_frame(a, b, alex, batch=2), rtol=1e-5)


def test_frames_too_small_for_the_network_are_refused(alex: Lpips) -> None:
    smallest = random_clip(0, 1, alex.least_px, alex.least_px)
    lpips_per_frame(smallest, smallest, alex)
    small = random_clip(0, 1, alex.least_px - 1, 64)
    with pytest.raises(VapError, match=r"frames of at least 31 px a side, got 64 x 30\. Enlarge"):
        lpips_per_frame(small, small, alex)


def test_weights_of_another_layout_are_refused_by_name(files: Path, tmp_path: Path) -> None:
    def saved(tensors: object) -> Path:
        torch.save(tensors, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    lacking, cut, nan = backbone("alex"), backbone("alex"), backbone("alex")
    del lacking["features.8.bias"]
    cut["features.3.weight"] = cut["features.3.weight"][:, :8]
    nan["features.6.bias"][3] = torch.nan
    lin = files / "alex_lin.pth"
    for weights, message in (
        (lacking, r"do not fit: missing features\.8\.bias; of another shape none; .*Give torchvision's"),
        (cut, r"of another shape features\.3\.weight \(192, 8, 5, 5\) instead of \(192, 64, 5, 5\)"),
        (nan, r"hold NaN or infinities in features\.6\.bias\. Fetch torchvision's"),
        ({"features.0.weight": torch.zeros(8, 3, 3, 3)}, r"must be AlexNet or VGG16, got features\.0\.weight of shape"),
        ({"conv1.weight": torch.zeros(2)}, r"must be AlexNet or VGG16, got no features\.0\.weight\. Give torchvision"),
        ({"step": 3}, r"must hold tensors by name, got dict without any\. Give torchvision"),
        ([1, 2], r"must hold tensors by name, got list without any\. Give torchvision"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_lpips(saved(weights), lin)
    with pytest.raises(CheckpointError, match=r"five linear layers .* got none in .*alex\.pth'\. Give, as second file"):
        load_lpips(files / "alex.pth")
    with pytest.raises(CheckpointError, match=r"\(for alex\) do not fit: .*lin1\.weight \(1, 128, 1, 1\) instead of"):
        load_lpips(files / "alex.pth", files / "vgg_lin.safetensors")
    with pytest.raises(CheckpointError, match=r"No weights at .*nowhere\.pth', got no such file\. Give the path of"):
        load_lpips(tmp_path / "nowhere.pth", lin)
    with pytest.raises(CheckpointError, match=r"got a folder\. Give the path of"):
        load_lpips(tmp_path, lin)


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("was run",)


def test_weights_that_would_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_lpips(tmp_path / "evil.pth", tmp_path / "evil.pth")
    assert "was run" not in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(where=st.floats(0, 1), flip=st.booleans(), ending=st.sampled_from(["pth", "safetensors"]))
def test_truncated_or_flipped_weights_never_crash(
    tmp_path_factory: pytest.TempPathFactory, files: Path, where: float, flip: bool, ending: str
) -> None:
    data = bytearray((files / f"alex_lin.{ending}").read_bytes())
    at = min(int(where * len(data)), len(data) - 1)
    if flip:
        data[at] ^= 1 << (at % 8)
    else:
        del data[at:]
    damaged = tmp_path_factory.mktemp("damaged") / f"lin.{ending}"
    damaged.write_bytes(bytes(data))
    whole = False
    with contextlib.suppress(CheckpointError):
        load_lpips(files / "alex.pth", damaged)
        whole = True
    assert flip or not whole  # a flipped bit in a number is a number; half a file is none


# --- FVD --------------------------------------------------------------------------------------------------------------


def test_i3d_reads_the_state_dict_of_the_pytorch_port(i3d_file: Path) -> None:
    features = load_i3d(i3d_file)
    clip = random_clip(0, 9, 32, 40)
    logits = features(clip)
    assert logits.shape == (400,)
    assert np.isfinite(logits).all()
    assert np.std(logits) > 0
    with pytest.raises(VapError, match=r"at least 9 frames, got 8\. Give longer"):
        features(clip[:8])


def test_i3d_has_the_layout_of_the_port() -> None:
    shapes = {key: tuple(value.shape) for key, value in I3d().state_dict().items() if "num_batches" not in key}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_2c_3x3.bn.running_var"] == (192,)
    assert shapes["Mixed_3b.b1b.conv3d.weight"] == (128, 96, 3, 3, 3)
    assert shapes["Mixed_4f.b3b.conv3d.weight"] == (128, 528, 1, 1, 1)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)
    assert shapes["logits.conv3d.bias"] == (400,)
    assert len(shapes) == 5 * (3 + 6 * len(INCEPTIONS)) + 2
    assert sum(np.prod(shape) for key, shape in shapes.items() if "running" not in key) == 12_697_264


def test_i3d_weights_that_do_not_fit_are_refused(i3d_file: Path, tmp_path: Path) -> None:
    tensors = torch.load(i3d_file, weights_only=True)
    fewer = {**tensors, "logits.conv3d.weight": tensors["logits.conv3d.weight"][:157]}
    torch.save(fewer, tmp_path / "charades.pt")
    with pytest.raises(CheckpointError, match=r"logits\.conv3d\.weight \(157, 1024, 1, 1, 1\) instead of \(400, .*400"):
        load_i3d(tmp_path / "charades.pt")
    with pytest.raises(CheckpointError, match=r"No weights at .*got no such file\. Give the path of StyleGAN-V's"):
        load_i3d(tmp_path / "nowhere.pt")


def test_i3d_reads_torchscript_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(TinyDetector()).save(str(path))
    clip = random_clip(0, 9)
    clip[..., 24:, :] = 255
    np.testing.assert_allclose(load_i3d(path)(clip)[1::2], 1, atol=0.1)  # the right half is white, in [−1, 1]
    assert (load_i3d(path)(clip)[::2] < 0.5).all()
    other = tmp_path / "other.pt"
    torch.jit.script(nn.Linear(3, 3)).save(str(other))
    with pytest.raises(CheckpointError, match=r"cannot read a clip of \(9, 40, 48, 3\).*Give StyleGAN-V's"):
        load_i3d(other)(clip)
    data = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.pt' cannot be read as weights.*fetch StyleGAN-V's"):
        load_i3d(tmp_path / "cut.pt")


def rows(seed: int, count: int = 40, width: int = 6, *, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + mean


def test_frechet_distance_equals_its_formula_by_matrix_roots() -> None:
    a, b = rows(0), rows(1, 30, mean=0.4)
    root = sqrtm(np.cov(a.T, ddof=0) @ np.cov(b.T, ddof=0)).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum()
    wanted += np.trace(np.cov(a.T, ddof=0) + np.cov(b.T, ddof=0) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(2, 20))
def test_frechet_distance_is_one_also_with_fewer_rows_than_columns(seed: int, count: int) -> None:
    a, b = rows(seed, count, 12), rows(seed + 1, count, 12)
    turn = np.linalg.qr(rows(seed + 2, 12, 12))[0]
    far = frechet_distance(a, b)
    assert far > 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.square(a).sum())
    assert frechet_distance(b, a) == pytest.approx(far)
    assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(far)  # features turned and shifted
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * far)
    assert frechet_distance(a, a + 1) == pytest.approx(12)


def brightness(clip: np.ndarray) -> np.ndarray:
    return clip.mean(axis=(0, 1, 2))


def test_fvd_carries_its_number_of_clips_and_a_floor_at_an_equal_number() -> None:
    rng = np.random.default_rng(0)

    def clips(count: int, level: float) -> list[np.ndarray]:
        colours = rng.normal(level, 10, (count, 1, 1, 1, 3)).clip(0, 255)
        return [np.broadcast_to(c, (9, 4, 4, 3)).astype(np.uint8) for c in colours]

    real, same, other = clips(24, 120), clips(24, 120), clips(24, 160)
    good, bad = fvd(same, real, brightness), fvd(other, real, brightness)
    assert (good.clips, good.floor_clips, good.frames) == (24, 12, 9)
    assert good.detector == "features of yours"
    assert good.floor == bad.floor > 0  # of the real clips alone
    assert good.value < good.value_at_floor  # the bias: fewer clips, larger distance
    assert good.value_at_floor == pytest.approx(good.floor, rel=1)
    assert bad.value_at_floor > 10 * bad.floor
    assert bad == fvd(other, real, brightness)
    assert bad != fvd(other, real, brightness, seed=1)
    assert str(good).startswith(f"{good.value:.4g} (N=24, T=9); at N=12: {good.value_at_floor:.4g}, real against real")
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.floor = 0.0  # type: ignore[misc]


def test_fvd_refuses_what_cannot_be_compared() -> None:
    clips = [random_clip(i, 9, 8, 8) for i in range(5)]
    with pytest.raises(VapError, match=r"as many generated as real clips, at least 4 each, got 4 and 5\. It depends"):
        fvd(clips[:4], clips, brightness)
    with pytest.raises(VapError, match=r"at least 4 each, got 3 and 3"):
        fvd(clips[:3], clips[:3], brightness)
    with pytest.raises(VapError, match=r"clips of one length, got \[7, 9\] frames\. Cut all to 7"):
        fvd([*clips[:4], clips[4][:7]], clips, brightness)
    with pytest.raises(VapError, match=r"real\[2\] must be a uint8 array"):
        fvd(clips, [*clips[:2], clips[2] / 255, *clips[3:]], brightness)
    with pytest.raises(VapError, match=r"features must be finite, got NaN"):
        fvd(clips, clips, lambda clip: np.array([np.nan, 1.0]))
