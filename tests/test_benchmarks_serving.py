"""The load test of the server: what is mixed up is found, and a small load is told as it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ID = "VAP-DROID-v0"


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import serving

        yield serving


def test_sessions_that_are_mixed_up_are_found_among_all(bench: Any) -> None:
    frames = [bench.locally(ID, seed, 1) for seed in range(3)]

    def seen(*shown: np.ndarray) -> list[Any]:
        return [bench.Played(frames=one, took_s=(0.1,), error=None) for one in shown]

    assert bench.compared(ID, seen(*frames), 1) == (0, 0.0)
    assert bench.compared(ID, seen(frames[0], frames[2], frames[1]), 1) == (2, 0.0)
    rounded = np.where(frames[1] < 255, frames[1] + 1, 255).astype(np.uint8)
    assert bench.compared(ID, seen(frames[0], rounded, frames[2]), 1) == (0, 1.0)
    broken_off = seen(frames[0][:1], frames[2][:1], np.zeros((0, 1, 1, 3), np.uint8))
    assert bench.compared(ID, broken_off, 1) == (1, 0.0)


def test_a_small_load_is_told(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Serving\n\n<!-- serving -->\n<!-- /serving -->\n")
    bench.main(page, clients=3, steps=2, rounds=2, dead=0, slow=0, exact=False)
    header, _, row = (line for line in page.read_text().splitlines() if line.startswith("|"))
    told = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row)), strict=True))
    assert (told["sessions"], told["loads"], told["lost"], told["mixed up"]) == ("3", "2", "0", "0 of 6")
    memory_mib = [float(mib) for mib in told["MiB after each load"].split(", ")]
    assert len(memory_mib) == 2
    assert all(100 < mib <= float(told["MiB before / peak"].split(" / ")[1]) + 1 for mib in memory_mib)
    assert "load 2: " in capsys.readouterr().out
