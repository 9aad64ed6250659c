"""What a data set must hold for a training to learn from it: looked up before anything is read."""

from __future__ import annotations

from vap_gym.data import EpisodeSet
from vap_gym.data.layout import DataError


def check_set(source: EpisodeSet, *, view: str | None = None, labels: bool = False, scenes: bool = False) -> None:
    """Refuse a set that lacks what a training reads.

    Args:
        view: the camera whose pictures are read; None: no pictures.
        labels: which pixel shows what (`vap_gym.sim.scene.LABELS`) is read, too.
        scenes: what each scene is made of (`info["scene"]`) is read.

    Raises:
        DataError: some of it is not there; all that is not is named.
    """
    lacks = []
    if view is not None and view not in source.features.views:
        lacks.append(f"pictures of a view '{view}' (its views: {', '.join(source.features.views) or 'none'})")
    if labels and view not in source.features.labels:
        lacks.append(f"label maps of the view '{view}'")
    if scenes and any("scene" not in source.info(i) for i in range(len(source))):
        lacks.append("what each scene is made of (info['scene'])")
    if lacks:
        raise DataError(
            f"The set '{source.root}' must hold what this training reads, but lacks {' and '.join(lacks)}. Take it out "
            "of the recipe's data. Sets of the simulator hold all of it: vap-gym data generate; recordings of real "
            "robots serve trainings of codec and world."
        )
