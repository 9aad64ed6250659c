"""`vap-gym data describe`: what a folder of episodes holds, without decoding a frame."""

from pathlib import Path
from typing import Any

from vap_gym.data.episodes import describe, described


def main(root: Path) -> dict[str, Any]:
    """Say what a folder of episodes holds: how much, which views and columns, and how often each outcome occurs.

    Args:
        root: The folder that holds meta/, data/ and videos/.
    """
    print(describe(root))
    return described(root)
