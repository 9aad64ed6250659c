"""Copy the first tables of docs/fidelity.md and docs/speed.md into the README, between their marks: no figure by hand.

python benchmarks/readme.py          # write them
python benchmarks/readme.py --check  # say whether they are those of the pages already
"""

from __future__ import annotations

import re
from pathlib import Path

import tyro

from vap_gym.errors import VapError
from vap_gym.evaluate import report

REPO = Path(__file__).resolve().parent.parent
PAGES = {"fidelity": "vap-gym bench fidelity", "speed": "vap-gym bench speed"}  # and what writes them


def gist(page: str) -> str:
    """Return the first markdown table of a page, and the sentences that say on what machine, of which commit, and when.

    Raises VapError for a page that lacks either.
    """
    table = re.search(r"(?:^\|.*\n?)+", page, flags=re.MULTILINE)
    measured = re.search(r"^Measured on .*? Commit [^\n]*?\d{4}-\d\d-\d\d\.", page, flags=re.MULTILINE)
    if table is None or measured is None:
        lacking = "table" if table is None else "line that begins with 'Measured on' and tells commit and date"
        raise VapError(f"The page holds no {lacking}. Write it anew with its command.")
    return f"{table[0].strip()}\n\n{measured[0]}"


def main(readme: Path = REPO / "README.md", *, docs: Path = REPO / "docs", check: bool = False) -> int:
    """Fill in the README. Returns 1 where `check` is asked and the README is another one.

    Args:
        readme: what is filled in, between `<!-- fidelity -->` and `<!-- /fidelity -->`, and likewise for speed.
        docs: where the pages are.
        check: write nothing.
    """
    before = readme.read_text(encoding="utf-8")
    text = before
    for name, command in PAGES.items():
        try:
            text = report.filled(text, name, gist((docs / f"{name}.md").read_text(encoding="utf-8")))
        except (OSError, VapError) as error:
            raise VapError(f"'{docs / name}.md' cannot be copied from: {error} `{command}` writes it.") from error
    if not check and text != before:
        report.write(readme, text)
    return int(check and text != before)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
