"""`vap-gym judge`: kept episodes judged again, by people, goal pictures or a vision-language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def main(folder: Path, judge: str, *, out: Path | None = None, clips: int = 120) -> dict[str, Any]:
    """Write report.json and report.html with the verdicts of another judge; nothing is played anew.

    Judges: labels:FILE.csv | goals:FOLDER,most_grey=8 | vlm:URL,model=NAME,votes=3 | transformers:FOLDER,votes=3 |
    python:MODULE:NAME. A file of labels that is not there yet is made, to be filled in; then call this again. What a
    judge cannot tell (no label, a refusal, no answer in time, as many yes as no) is unknown.

    Args:
        folder: of the evaluation, as vap-gym evaluate wrote it.
        judge: who judges.
        out: folder for the report; by default judged/<kind> within the evaluation's.
        clips: at most so many episodes can be played in report.html.
    """
    from vap_gym.evaluate.policies_judges_named import named_judge
    from vap_gym.evaluate.policies_page import write_page
    from vap_gym.evaluate.policies_rejudge import labels_to_fill_in, rejudged
    from vap_gym.evaluate.policies_report import Report

    report = Report.load(folder)
    kind, _, what = judge.partition(":")
    if kind == "labels" and what and not Path(what).exists():
        count = labels_to_fill_in(report, what)
        print(
            f"{what}: {count} episodes to label. Write success or failure into the last column, then call this again."
        )
        return {"labels": what, "to_label": count}
    found = rejudged(report, folder, named_judge(judge))
    into = folder / "judged" / kind if out is None else out
    into.mkdir(parents=True, exist_ok=True)
    found.save(into / "report.json")
    write_page(found, folder, clips=clips, into=into)
    print(f"{found}\n{into / 'report.html'}")
    return found.to_json() | {"written": [into / "report.json", into / "report.html"]}
