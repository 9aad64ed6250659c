"""Metrics: how near an imagined clip comes to the true one, in plain numpy, with intervals.

Clips are uint8 RGB of shape (T, H, W, 3). What is named *_per_frame returns a figure per frame, the rest one per clip.
LPIPS and FVD, which need weights of yours and torch, are in `vap_gym.metrics.learned`.
"""

from vap_gym.metrics.intervals import Interval, bootstrap_interval, paired_bootstrap_interval
from vap_gym.metrics.judged import adherence_px, object_error_m
from vap_gym.metrics.masks import (
    MaskScores,
    boundary_f_per_frame,
    boundary_iou_per_frame,
    mask_scores,
    region_j_per_frame,
)
from vap_gym.metrics.motion import (
    MOTION_RATE,
    MOTION_THRESHOLD,
    MotionIou,
    mask_motion_iou,
    motion_iou,
    motion_masks,
    spatial_iou,
    st_iou,
    weighted_spatial_iou,
)
from vap_gym.metrics.pixels import PSNR_CAP_DB, psnr, psnr_per_frame, ssim, ssim_per_frame
from vap_gym.metrics.ranking import RankAgreement, mmrv, pearson, rank_agreement, spearman

__all__ = [
    "MOTION_RATE",
    "MOTION_THRESHOLD",
    "PSNR_CAP_DB",
    "Interval",
    "MaskScores",
    "MotionIou",
    "RankAgreement",
    "adherence_px",
    "bootstrap_interval",
    "boundary_f_per_frame",
    "boundary_iou_per_frame",
    "mask_motion_iou",
    "mask_scores",
    "mmrv",
    "motion_iou",
    "motion_masks",
    "object_error_m",
    "paired_bootstrap_interval",
    "pearson",
    "psnr",
    "psnr_per_frame",
    "rank_agreement",
    "region_j_per_frame",
    "spatial_iou",
    "spearman",
    "ssim",
    "ssim_per_frame",
    "st_iou",
    "weighted_spatial_iou",
]
