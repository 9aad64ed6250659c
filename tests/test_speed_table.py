"""The table of speeds: its structure and its rules. No time is asserted: the machine that runs tests is not idle."""

import json
import re
from pathlib import Path

import pytest

from vap_gym.commands.telling import json_text
from vap_gym.errors import VapError
from vap_gym.evaluate import report, speed
from vap_gym.evaluate.speed import Figure


def test_time_is_better_when_lower() -> None:
    fast, fair, slow = (Figure(name="x", seconds=(s,) * 3, must=60.0, aim=25.0).row() for s in (0.02, 0.05, 0.07))
    assert fast == ("x", "ms", "20", "20", "≤ 60", "≤ 25", "aim")
    assert fair[-1] == "must"
    assert slow[-1] == "no"


def test_rate_is_better_when_higher_and_its_p95_is_the_worse_end() -> None:
    figure = Figure(name="x", seconds=(0.1,) * 19 + (0.2,) * 2, per=16, must=100.0, aim=200.0)
    assert figure.p50 == pytest.approx(160)
    assert figure.p95 < figure.p50
    assert figure.row()[1:] == ("1/s", "160", "80", "≥ 100", "≥ 200", "must")


def test_figure_without_a_bound_has_none_to_meet() -> None:
    assert Figure(name="x", seconds=(1.0,)).row()[-3:] == ("", "", "")


def test_table_has_as_many_cells_everywhere() -> None:
    text = report.table(("a", "b"), [("1", "long | cell"), ("22", "")])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"|", "-"}
    with pytest.raises(VapError, match="must have 2 cells"):
        report.table(("a", "b"), [("1",)])


def test_stamp_names_machine_settings_commit_and_date() -> None:
    stamp = report.stamp(dtype="bfloat16", load_before="0.1")
    assert re.search(r"cores, torch .* with \d+ threads, dtype bfloat16, load before 0.1\. Commit \S+", stamp)
    assert re.search(r"20\d\d-\d\d-\d\d\.$", stamp)


def test_report_is_whole_or_not_there(tmp_path: Path) -> None:
    report.write(tmp_path / "new" / "report.md", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.md"]
    assert (tmp_path / "new" / "report.md").read_text() == "text\n"


def test_no_repeats_are_refused() -> None:
    with pytest.raises(VapError, match="repeats must be 1 or more, got 0"):
        speed.main(None, repeats=0)


@pytest.mark.slow
def test_bench_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = speed.main(tmp_path / "speed.md", repeats=1)
    text = (tmp_path / "speed.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == list(speed.HEADER)
    assert len(rows) - 2 == speed.COUNT
    assert [row["name"] for row in json.loads(json_text(told))["figures"]] == [
        line.split("|")[1].strip() for line in rows[2:]
    ]
    for issue in ("≤ 45", "≤ 25", "≥ 150", "≥ 300", "≥ 50", "≥ 100", "≥ 5,000", "≥ 15,000"):
        assert issue in text
    assert "Commit" in text
    assert text.strip() in capsys.readouterr().out
