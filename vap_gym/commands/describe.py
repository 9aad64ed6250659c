"""`vap-gym data describe`: what a folder of episodes holds, without decoding a frame."""

from collections import Counter
from pathlib import Path

from vap_gym.data.episodes import EpisodeSet


def main(root: Path) -> None:
    """Say what a folder of episodes holds: how much, which views and columns, and how often each outcome occurs.

    Args:
        root: The folder that holds meta/, data/ and videos/.
    """
    episodes = EpisodeSet(root)
    lengths = [episodes.length(i) for i in range(len(episodes))]
    seconds = sum(lengths) / episodes.fps
    print(f"{len(lengths)} episodes, {sum(lengths)} frames, {seconds / 60:.1f} minutes at {episodes.fps} fps")
    if not lengths:
        return
    print(f"length: {min(lengths)} to {max(lengths)} frames, mean {sum(lengths) / len(lengths):.1f}")
    for name, (height, width) in episodes.features.views.items():
        print(f"view {name}: {width}x{height} px")
    for name, column in episodes.features.columns.items():
        print(f"column {name}: {column.dtype} {column.shape}")
    for name, (height, width) in episodes.features.labels.items():
        print(f"label {name}: {width}x{height} px")
    for name, counts in outcomes(episodes).items():
        print(f"{name}: " + ", ".join(f"{value} {count}" for value, count in counts.most_common()))


def outcomes(episodes: EpisodeSet, *, most: int = 12) -> dict[str, Counter[str]]:
    """Count the values of every entry of the episodes' info that is a word or a flag and takes few values."""
    counts: dict[str, Counter[str]] = {}
    for i in range(len(episodes)):
        for name, value in episodes.info(i).items():
            if isinstance(value, str | bool):
                counts.setdefault(name, Counter())[str(value)] += 1
    return {name: values for name, values in counts.items() if len(values) <= most}
