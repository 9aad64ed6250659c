"""The README's figures are those of the pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vap_gym.errors import VapError

MARKS = "<!-- fidelity -->\n<!-- /fidelity -->\nbetween\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n"
TABLE, ORIGIN = "| a | b |\n|---|---|\n| 1 | 2 |", "Measured on a machine. Commit abc+, 2026-01-02."
PAGE = f"# A page\n\n{TABLE}\n\nWords.\n\n| c |\n|---|\n| 3 |\n\n{ORIGIN} More.\n"
GIST = f"{TABLE}\n\n{ORIGIN}"


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import readme

        yield readme


def test_the_readme_says_what_the_pages_say(bench: Any, repo: Path) -> None:
    assert bench.main(repo / "README.md", docs=repo / "docs", check=True) == 0


def test_the_first_table_of_each_page_is_copied_with_machine_commit_and_date(bench: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(MARKS)
    for name in ("fidelity", "speed"):
        (tmp_path / f"{name}.md").write_text(PAGE.replace("| 2 |", "| 5 |") if name == "speed" else PAGE)
    assert bench.main(readme, docs=tmp_path, check=True) == 1
    assert readme.read_text() == MARKS
    assert bench.main(readme, docs=tmp_path) == 0
    text = readme.read_text()
    assert f"<!-- fidelity -->\n{GIST}\n<!-- /fidelity -->\nbetween\n" in text
    assert "| 1 | 5 |" in text
    assert "| 3 |" not in text
    assert bench.main(readme, docs=tmp_path, check=True) == 0


@pytest.mark.parametrize("page", [None, "# A page\n", PAGE.replace("Measured on", "Somewhere"), "| a |\n|---|\n"])
def test_a_page_without_table_or_origin_is_refused_and_the_readme_left_alone(
    bench: Any, tmp_path: Path, page: str | None
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(MARKS)
    (tmp_path / "fidelity.md").write_text(PAGE)
    if page is not None:
        (tmp_path / "speed.md").write_text(page)
    with pytest.raises(VapError, match=r"speed.md.*vap-gym bench speed"):
        bench.main(readme, docs=tmp_path)
    assert readme.read_text() == MARKS
