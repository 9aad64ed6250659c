"""The page of an evaluation: one HTML file with rates, differences, ranks, and clips that play, failures first."""

from __future__ import annotations

import base64
import itertools
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vap_gym.data import EpisodeSet, write_video
from vap_gym.evaluate.policies_keep import folder_of
from vap_gym.evaluate.policies_report import Report, Row
from vap_gym.evaluate.report import write
from vap_gym.metrics import Interval
from vap_gym.observations import FRONT

MARKS = {"fault": "!", "failure": "✗", "unknown": "?", "success": "✓"}
"""What a cell of the grid shows; in this order clips are shown, too."""
MANY = 6  # policies; the differences between more would fill the page
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#19191e;
background:#fafaf8}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}.pale{color:#6e6e76}
.wide{overflow-x:auto}table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:left}th{font-weight:600}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.grid td{padding:0;width:1.7rem;height:1.5rem;text-align:center;border:2px solid #fafaf8}
.grid a{color:inherit;text-decoration:none}
.grid th.p{writing-mode:vertical-rl;transform:rotate(180deg);font-weight:400}
.success{background:#cfe8cf}.failure{background:#f2cfc9}.fault{background:#e08a7d}.unknown{background:#e4e4de}
.clips{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;width:14rem}
figure video{width:100%;display:block;background:#000}
figcaption{font-size:.8rem;padding:.2rem .4rem}:target{outline:3px solid #2a6fb0}
"""


def write_page(report: Report, root: Path, *, clips: int, into: Path | None = None) -> None:
    """Write report.html, whole or not at all.

    Args:
        root: the evaluation's folder, where its episodes are.
        into: the folder to write into; None: the evaluation's.
        clips: at most so many episodes can be played in it.
    """
    shown = chosen(report, clips)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name=viewport content='width=device-width'>",
        f"<title>Policies: {_what(report)}</title>",
        f"<style>{STYLE}</style><h1>Policies: {_what(report)}</h1>",
        f"<p>{len(report.policies)} policies, {len(report.trials)} trials each from {len(set(report.starts))} starts, "
        f"at most {report.about['steps']} steps. Success is told by {_judge(report)}.</p>",
        *_rates(report),
        *_differences(report),
        *_grid(report, set(shown)),
        *_clips(report, root, shown),
        "</html>",
    ]
    write((into or root) / "report.html", "\n".join(parts))


def kind_of(row: Row | None) -> str | None:
    """Return which of MARKS a row is; None: it was not played."""
    return None if row is None else "fault" if row.fault is not None else row.verdict


def chosen(report: Report, clips: int) -> list[tuple[str, int]]:
    """Return the policies and trials whose clips are shown: failures first, the worst faults before all.

    Of each kind the policies take turns, so that one bad policy does not crowd the others out.
    """
    found: list[tuple[str, int]] = []
    for kind in MARKS:
        mine = [[(name, i) for i, row in enumerate(rows) if kind_of(row) == kind] for name, rows in report.rows.items()]
        found += [one for turn in itertools.zip_longest(*mine) for one in turn if one is not None]
    return found[: max(clips, 0)]


def _what(report: Report) -> str:
    about = report.about
    return escape(f"{about['task']} in {about['card']}, {report.world}")


def _judge(report: Report) -> str:
    told = str(report.about.get("judge", ""))
    return escape(f"the judge '{told}'") if told else "the simulator itself"


def _rates(report: Report) -> Iterator[str]:
    """Success with intervals, the best first: table and rank plot in one."""
    how = "Wilson's intervals" if len(set(report.starts)) == len(report.trials) else "intervals over whole starts"
    yield f"<h2>Success</h2><p class=pale>The best first, with {how} of 95 %.</p><div class=wide><table>"
    yield "<tr><th>rank<th>policy<th>success<th><th>faults<th>unknown<th>not played"
    for rank, name in enumerate(report.ranked(), 1):
        rate, rows = report.rate(name), report.rows[name]
        kinds = [kind_of(row) for row in rows]
        yield (
            f"<tr><td class=n>{rank}<td>{escape(name)}<td class=n>{100 * rate.value:.0f} % "
            f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]<td>{_bar(rate)}<td class=n>{kinds.count('fault')}"
            f"<td class=n>{kinds.count('unknown')}<td class=n>{kinds.count(None)}"
        )
    for name in report.policies:
        if name not in report.ranked():
            yield f"<tr><td><td>{escape(name)}<td colspan=5 class=pale>no verdict is known"
    yield "</table></div>"
    for name, why in report.lost.items():
        yield f"<p class=fault>Some episodes of {escape(name)} were not played: {escape(why)}</p>"


def _bar(rate: Interval) -> str:
    """A rate as a dot on a line from 0 to 1, with its interval."""
    low, middle, high = (4 + 192 * x for x in (rate.low, rate.value, rate.high))
    return (
        "<svg width=200 height=14><line x1=4 x2=196 y1=7 y2=7 stroke='#ddd'/>"
        f"<line x1={low:.1f} x2={high:.1f} y1=7 y2=7 stroke='#2a6fb0' stroke-width=3 />"
        f"<circle cx={middle:.1f} cy=7 r=5 fill='#2a6fb0'/></svg>"
    )


def _differences(report: Report) -> Iterator[str]:
    """Every policy against every other one, in the same trials; of many policies only neighbours in rank."""
    ranked = report.ranked()
    if len(ranked) < 2:
        return
    pairs = list(itertools.combinations(ranked, 2) if len(ranked) <= MANY else itertools.pairwise(ranked))
    which = "" if len(ranked) <= MANY else "Of neighbours in rank. "
    yield f"<h2>Differences in the same trials</h2><p class=pale>{which}Bold where the interval of 95 % leaves out "
    yield "zero. Not corrected for many comparisons.</p><table>"
    outcomes = dict(zip(report.policies, report.outcomes()))
    for better, worse in pairs:
        if np.isfinite(outcomes[better] - outcomes[worse]).any():
            gap = report.difference(better, worse)
            text = f"{100 * gap.value:+.0f} % [{100 * gap.low:+.0f}, {100 * gap.high:+.0f}]"
            text = f"<b>{text}</b>" if gap.low > 0 or gap.high < 0 else text
            yield f"<tr><td>{escape(better)} − {escape(worse)}<td class=n>{text}"
    yield "</table>"


def _grid(report: Report, shown: set[tuple[str, int]]) -> Iterator[str]:
    """Trials × policies; the trials in which most fail are above."""
    fails = [
        sum(kind_of(rows[i]) in ("fault", "failure") for rows in report.rows.values())
        for i in range(len(report.trials))
    ]
    yield "<h2>Every trial</h2><p class=pale>✓ solved, ✗ not, ! the policy broke, ? nobody can tell. A mark leads to "
    yield "its clip, where there is one.</p><div class=wide><table class=grid><tr><th>start, seed"
    yield from (f"<th class=p>{escape(name)}" for name in report.policies)
    for i in sorted(range(len(report.trials)), key=lambda i: -fails[i]):
        trial = report.trials[i]
        yield f"<tr><th class=pale>{trial.start}, {trial.seed}"
        for name, rows in report.rows.items():
            kind = kind_of(rows[i])
            mark = "·" if kind is None else MARKS[kind]
            link = f"<a href='#{escape(name)}-{i}'>{mark}</a>" if (name, i) in shown else mark
            yield f"<td class='{kind or ''}'>{link}"
    yield "</table></div>"


def _clips(report: Report, root: Path, shown: list[tuple[str, int]]) -> Iterator[str]:
    played = sum(row is not None for rows in report.rows.values() for row in rows)
    yield f"<h2>Clips</h2><p class=pale>{len(shown)} of {played} episodes, failures first. All of them, with actions "
    yield "and trust: episodes/.</p><div class=clips>"
    sets = {name: EpisodeSet(folder_of(root, name)) for name in dict.fromkeys(name for name, _ in shown)}
    places = {name: {kept.index(i): i for i in range(len(kept))} for name, kept in sets.items()}
    for name, number in shown:
        row, trial, kept = report.rows[name][number], report.trials[number], sets[name]
        assert row is not None
        episode = kept.read(places[name][number], labels=(), columns=(), views=[FRONT])
        said = [f"{row.steps} steps", f"progress {row.progress:.2f}"]
        said += [] if row.trust is None else [f"trust {row.trust:.2f}"]
        said += [] if row.fault is None else [row.fault]
        kind = kind_of(row)
        assert kind is not None
        yield (
            f"<figure id='{escape(name)}-{number}'><video controls loop muted playsinline preload=metadata "
            f"src='{clip_uri(episode.frames[FRONT], kept.fps)}'></video><figcaption class={kind}>{MARKS[kind]} "
            f"<b>{escape(name)}</b>, start {trial.start}, seed {trial.seed}: {escape(episode.task)}. "
            f"{escape(', '.join(said))}</figcaption></figure>"
        )
    yield "</div>"


def clip_uri(frames: UInt8[np.ndarray, "T H W 3"], fps: int) -> str:
    """Return frames as an mp4 within a data URI that browsers play: H.264, an even number of pixels."""
    H, W = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, even, fps, codec="h264", crf=23)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
