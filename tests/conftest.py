"""Shared fixtures: where the real recordings are, run-time checks of tensor shapes, and how many tests were skipped."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Types and tensor shapes in annotations are checked while testing; VAP_TYPECHECK=0 switches that off.
if os.environ.get("VAP_TYPECHECK", "1") != "0":
    from typing import Protocol, runtime_checkable

    from jaxtyping import install_import_hook

    # Not the interfaces: their bodies are empty. All others, named one by one.
    modules = [path.stem for path in (REPO / "vap_gym").iterdir() if path.stem not in ("interfaces", "__main__")]
    install_import_hook([f"vap_gym.{name}" for name in modules], "beartype.beartype")

    import vap_gym.interfaces

    for interface in vars(vap_gym.interfaces).values():
        if isinstance(interface, type) and Protocol in interface.__bases__:
            runtime_checkable(interface)  # or beartype refuses functions that take one


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings: $VAP_SHARED_DATA, or ../shared/data beside the checkout.

    Tests that ask for it are skipped where it is absent, and fail there when VAP_REQUIRE_SHARED=1.
    """
    folder = Path(os.environ.get("VAP_SHARED_DATA") or REPO.parent / "shared" / "data")
    if folder.is_dir():
        return folder
    message = f"no recordings at {folder}: set VAP_SHARED_DATA to their folder"
    if os.environ.get("VAP_REQUIRE_SHARED") == "1":
        pytest.fail(f"{message} (VAP_REQUIRE_SHARED=1 makes their absence a failure)", pytrace=False)
    pytest.skip(message)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests, none included, so that a silent skip is seen."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped tests: {skipped}")
