"""`vap-gym metrics`: how near clips come to the true ones, or masks to the true masks, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from vap_gym import metrics
from vap_gym.commands.clip_files import ClipFile, paired, read_frames, read_masks
from vap_gym.data.layout import DataError, write_json
from vap_gym.evaluate.report import table
from vap_gym.metrics.control import motion_adherence

Array = NDArray[Any]
Scores = dict[str, float]

CLIP_ROWS = {
    "psnr_db": ("PSNR [dB]", "up"),
    "ssim": ("SSIM", "up"),
    "st_iou": ("ST-IoU of motion", "up"),
    "spatial_iou": ("spatial IoU of motion", "up"),
    "weighted_spatial_iou": ("weighted spatial IoU", "up"),
    "lpips": ("LPIPS", "down"),
    "prompt_adherence": ("prompt adherence by motion", "up"),
}
MASK_ROWS = {
    "j": ("J, region IoU", "up"),
    "f": ("F, outlines", "up"),
    "j_and_f": ("J&F", "up"),
    "boundary_iou": ("Boundary IoU", "up"),
}
WITHOUT_FVD = "give folders of clips and --fvd WEIGHTS: "


def main(
    prediction: str,
    truth: str,
    *,
    masks: bool = False,
    prompts: str | None = None,
    lpips: Path | None = None,
    lpips_lin: Path | None = None,
    fvd: Path | None = None,
    resize: tuple[int, int] | None = None,
    frames: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score clips against the true ones: two clips, or two folders with clips of the same names.

    A clip is a video (.mp4), an array (.npz, .npy; FILE.npz:KEY where it holds several), or a folder of pictures.
    Beside the scores stands what a frozen first frame of the truth would get. Of folders, means over clips are told
    with their bootstrap interval of 95 %.

    Args:
        prediction: the imagined clip, or a folder of such.
        truth: the true clip, or a folder of such.
        masks: compare masks (bool or label arrays, pictures or videos; what is not 0): J, F and Boundary IoU.
        prompts: the prompt pictures of the clip, or a folder of such: adds how well the motion follows them.
        lpips: your weights of AlexNet or VGG16 (torchvision's) for LPIPS; or one file with the linear layers in it.
        lpips_lin: your linear layers of LPIPS (of the package lpips), if the first file has none.
        fvd: your weights of I3D for FVD: i3d_torchscript.pt (StyleGAN-V's) or a pytorch-i3d state dict.
        resize: width and height to bring everything to first; scores then are not those of the original size.
        frames: compare only the first so many frames.
        out: also write all figures, of every clip, to this file.
        device: where LPIPS and FVD run, e.g. "cuda".
    """
    if out is not None and out.is_dir():
        raise DataError(f"--out must be a file to write, got the folder '{out}'. Try --out {out / 'metrics.json'}.")
    pairs = paired(prediction, truth)
    asked = {"--prompts": prompts, "--lpips": lpips, "--lpips-lin": lpips_lin, "--fvd": fvd}
    useless = [flag for flag, value in asked.items() if masks and value is not None]
    if useless:
        raise DataError(f"--masks compares masks alone, got {', '.join(useless)} too. Leave them out, or --masks.")
    if lpips_lin is not None and lpips is None:
        raise DataError("--lpips-lin needs the backbone too, got it alone. Add --lpips WEIGHTS.")
    ready = _Ready(read_masks if masks else read_frames, resize, frames, nearest=masks)
    if masks:
        report = _scored_masks(pairs, ready)
    else:
        told = None if prompts is None else _prompts(prompts, truth)
        _check_device(device)
        report = _scored_clips(pairs, ready, told, lpips, lpips_lin, fvd, device)
    report = {"prediction": prediction, "truth": truth, "resized_to": resize, **report}
    print(_page(report, MASK_ROWS if masks else CLIP_ROWS))
    if out is not None:
        write_json(out, report)
    return report


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion of a torch that is built without CUDA
        told = str(error).split("\n")[0]
        raise DataError(f"--device must be one of this machine's, got '{device}': {told}. Try --device cpu.") from error


class _Ready:
    """Reads pairs of clips, cut and resized as asked, and of one shape or refused."""

    def __init__(
        self, read: Callable[[ClipFile], Array], resize: tuple[int, int] | None, frames: int | None, *, nearest: bool
    ) -> None:
        if (resize is not None and min(resize) < 1) or (frames is not None and frames < 1):
            raise DataError(
                f"--resize must be two sides and --frames a number, at least 1, got {resize} and {frames}. "
                "E.g. --resize 320 192 --frames 16."
            )
        self.read, self.resize, self.frames = read, resize, frames
        self.filter = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC

    def clip(self, file: ClipFile) -> Array:
        clip = self.read(file)
        if self.frames is not None and len(clip) < self.frames:
            raise DataError(
                f"'{file.path}' must have {self.frames} frames, got {len(clip)}. Give --frames {len(clip)}."
            )
        clip = clip[: self.frames]
        if self.resize is None or self.resize == (clip.shape[2], clip.shape[1]):
            return clip
        return np.stack([np.array(Image.fromarray(frame).resize(self.resize, self.filter)) for frame in clip])

    def pair(self, one: ClipFile, other: ClipFile) -> tuple[Array, Array]:
        a, b = self.clip(one), self.clip(other)
        if a.shape[1:3] != b.shape[1:3]:
            sizes = [f"'{f.path}' {x.shape[2]}x{x.shape[1]}" for f, x in ((one, a), (other, b))]
            raise DataError(
                f"Both clips must have one frame size, got {' and '.join(sizes)}. "
                f"Bring both to one: --resize {b.shape[2]} {b.shape[1]}."
            )
        if len(a) != len(b):
            lengths = [f"'{f.path}' {len(x)}" for f, x in ((one, a), (other, b))]
            raise DataError(
                f"Both clips must have one number of frames, got {' and '.join(lengths)}. "
                f"To compare only the first ones: --frames {min(len(a), len(b))}."
            )
        return a, b


def _prompts(prompts: str, truth: str) -> dict[str, ClipFile]:
    """The prompt clips by the names of `paired`."""
    return {name: one for name, (one, _) in paired(prompts, truth).items()}


def _scored_masks(pairs: dict[str, tuple[ClipFile, ClipFile]], ready: _Ready) -> dict[str, Any]:
    scores, shapes = {}, []
    for name, files in pairs.items():
        a, b = ready.pair(*files)
        scores[name] = asdict(metrics.mask_scores(a, b))
        shapes.append(b.shape)
    return {**_summed_up(scores, {}), **_told_shapes(shapes), "absent": {}}


def _scored_clips(
    pairs: dict[str, tuple[ClipFile, ClipFile]],
    ready: _Ready,
    prompts: dict[str, ClipFile] | None,
    lpips: Path | None,
    lpips_lin: Path | None,
    fvd: Path | None,
    device: str,
) -> dict[str, Any]:
    from vap_gym.metrics import learned

    absent = {"fvd": f"{WITHOUT_FVD}{learned.I3D_FILE}"} if fvd is None else {}
    if lpips is None:
        absent["lpips"] = f"give --lpips: {learned.BACKBONE_FILE}, and --lpips-lin: {learned.LIN_FILE}"
    if fvd is not None and len(pairs) < learned.LEAST_CLIPS:
        raise DataError(
            f"FVD needs two folders of at least {learned.LEAST_CLIPS} clips, got {len(pairs)}. Leave out --fvd: no "
            "distance of distributions can be had from so few."
        )
    look = None if lpips is None else learned.load_lpips(lpips, lpips_lin, device=device)
    detector = None if fvd is None else learned.load_i3d(fvd, device=device)
    scores: dict[str, Scores] = {}
    frozen: dict[str, Scores] = {}
    shapes, features = [], []
    for name, files in tqdm(pairs.items(), unit="clip", disable=len(pairs) == 1, leave=False):
        a, b = ready.pair(*files)
        still, true_motion = np.repeat(b[:1], len(b), axis=0), metrics.motion_masks(b)
        scores[name], frozen[name] = (_scores(x, b, true_motion) for x in (a, still))
        if look is not None:
            for kept, x in ((scores, a), (frozen, still)):
                kept[name]["lpips"] = float(learned.lpips_per_frame(x, b, look).mean())
        if prompts is not None:
            told, _ = ready.pair(prompts[_named(prompts, name)], files[1])
            for kept, x in ((scores, a), (frozen, still)):
                kept[name]["prompt_adherence"] = motion_adherence(x, told).score
        shapes.append(b.shape)
        if detector is not None:
            features.append([detector(a), detector(b)])
    shape = _told_shapes(shapes)
    report = {**_summed_up(scores, frozen), **shape, "absent": absent}
    if detector is not None:
        if len(shape["frames"]) > 1:
            lengths = shape["frames"]
            raise DataError(f"FVD needs clips of one length, got {lengths} frames. Cut them: --frames {lengths[0]}.")
        fake, true = np.stack(features, axis=1)
        report["fvd"] = asdict(learned.fvd_of_features(fake, true, frames=len(b), detector=detector.name))
    return report


def _named(prompts: dict[str, ClipFile], name: str) -> str:
    return name if len(prompts) > 1 or name in prompts else next(iter(prompts))  # of one clip, whatever its name


def _scores(clip: Array, truth: Array, true_motion: Array) -> Scores:
    motion = metrics.mask_motion_iou(metrics.motion_masks(clip), true_motion)
    return {
        "psnr_db": metrics.psnr(clip, truth),
        "ssim": metrics.ssim(clip, truth),
        "st_iou": motion.spatio_temporal,
        "spatial_iou": motion.spatial,
        "weighted_spatial_iou": motion.weighted_spatial,
    }


def _summed_up(scores: dict[str, Scores], frozen: dict[str, Scores]) -> dict[str, Any]:
    """Means over clips; with their intervals where there are several."""
    names = next(iter(scores.values()))
    summary: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in scores.values()]
        interval = metrics.bootstrap_interval(values)
        summary[name] = asdict(interval) if len(values) > 1 else {"value": values[0], "samples": 1}
    still = {n: float(np.mean([row[n] for row in frozen.values()])) for n in names} if frozen else {}
    return {"scores": summary, "frozen_first_frame": still, "per_clip": scores}


def _told_shapes(shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    return {
        "clips": len(shapes),
        "frames": sorted({shape[0] for shape in shapes}),
        "sizes_px": [list(size) for size in sorted({(shape[2], shape[1]) for shape in shapes})],
    }


def _page(report: dict[str, Any], rows: dict[str, tuple[str, str]]) -> str:
    """The report as a table with a line of what was compared, and what is absent."""
    arrows = {"up": "higher", "down": "lower"}
    still, cells = report["frozen_first_frame"], []
    for name, (title, better) in rows.items():
        if name in report["scores"]:
            score = report["scores"][name]
            told = str(metrics.Interval(**score)) if "low" in score else f"{score['value']:.4g}"
            cells.append([title, told, arrows[better], *([f"{still[name]:.3g}"] if still else [])])
    sizes = ", ".join(f"{w}x{h}" for w, h in report["sizes_px"])
    lengths = ", ".join(map(str, report["frames"]))
    head = (
        f"{report['prediction']} against {report['truth']}: {report['clips']} clip(s) of {lengths} frames, {sizes} px"
    )
    if report["resized_to"]:
        head += " after resizing"
    notes = [head, "", table(["metric", "value", "better", *(["frozen first frame"] if still else [])], cells)]
    if "fvd" in report:
        from vap_gym.metrics.learned import Fvd

        notes.append(f"\nFVD {Fvd(**report['fvd'])}. Lower is better; compare only at equal N and T.")
    notes += [f"\n{name.upper()} is absent: {how}." for name, how in sorted(report["absent"].items())]
    return "\n".join(notes)
