"""Shared fixtures: where the real recordings are, run-time checks of tensor shapes, and how many tests were skipped."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Shapes in annotations are checked while testing. VAP_TYPECHECK=0 switches it off, to see whether it hides or causes something.
if os.environ.get("VAP_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("vap_gym", "typeguard.typechecked")


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
