"""Copy the tables of docs/fidelity.md and docs/speed.md into the README, between their markers: no figure by hand."""

import re
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def tables(report: str) -> str:
    """Return the markdown tables of a report, in order."""
    return "\n\n".join(re.findall(r"(?:^\|.*\n?)+", report, flags=re.MULTILINE)).strip()


def filled(readme: str, name: str, report: str) -> str:
    """Return the README with what stands between `<!-- name -->` and `<!-- /name -->` replaced by a report's tables."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = readme.split(begin)
    return f"{head}{begin}\n{tables(report)}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Fill in what there are reports of."""
    readme = REPO / "README.md"
    text = readme.read_text()
    for name in ("fidelity", "speed"):
        report = REPO / "docs" / f"{name}.md"
        if report.exists():
            text = filled(text, name, report.read_text())
    readme.write_text(text)


if __name__ == "__main__":
    main()
