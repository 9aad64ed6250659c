"""Where the shipped data lies: the one place that knows a wheel from a checkout."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE if (_HERE / "robots").is_dir() else _HERE.parent  # wheel, or checkout


def robots_dir() -> Path:
    """Return the folder with one sub-folder per robot (robot.toml, robot.urdf, LICENSE)."""
    return ROOT / "robots"


def envs_dir() -> Path:
    """Return the folder with one TOML card per registered env id."""
    return ROOT / "envs"


def weights_dir() -> Path:
    """Return the folder with the weights that are shipped inside the package."""
    return _HERE / "weights"
