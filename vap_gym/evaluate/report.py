"""Reports: markdown tables that say on which machine, from which commit and when they were measured."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vap_gym.assets import ROOT
from vap_gym.errors import VapError

S = TypeVar("S")
T = TypeVar("T")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table, its columns aligned for those who read the source.

    Raises:
        VapError: a row of another length than the header's.
    """
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        raise VapError(f"Every row must have {len(header)} cells ({', '.join(header)}), got {list(wrong[0])}.")
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[c]) for row in cells) for c in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def machine(device: str = "cpu") -> str:
    """Say in a line what this runs on: processor, cores that may be used, torch and its threads, the graphics card."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor()}, {cores} cores, torch {torch.__version__} with {torch.get_num_threads()} threads"
    return f"{text}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else text


def load_average() -> str:
    """Return how busy the machine was in the last minute, in cores: above about .5 it was not idle."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def commit() -> str:
    """Return the commit of the checkout, with "+" where files differ from it; outside of one, the version."""
    from importlib.metadata import PackageNotFoundError, version

    if (ROOT / ".git").exists():
        try:
            head = _git("rev-parse", "--short=10", "HEAD")
            return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.CalledProcessError):
            pass  # no git, or a checkout without a commit
    try:
        return f"version {version('vap-gym')}"
    except PackageNotFoundError:
        return "unknown"


def stamp(device: str = "cpu", **settings: object) -> str:
    """Return the line that belongs under every table: machine, settings, commit, date."""
    said = "".join(f", {name.replace('_', ' ')} {value}" for name, value in settings.items())
    return f"Measured on {machine(device)}{said}. Commit {commit()}, {datetime.now(UTC):%Y-%m-%d}."


def filled(page: str, name: str, text: str) -> str:
    """Return a page with what stands between `<!-- name -->` and `<!-- /name -->` replaced.

    Raises VapError for a page without these marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise VapError(f"The page must hold {begin} … {end}, but does not. Write them where the text shall stand.")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def plain(value: object) -> Any:
    """Return figures as JSON takes them: dataclasses as tables, arrays as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def each(
    measure: Callable[[S], T], names: Sequence[S], *, workers: int = 1, late: Callable[[], bool] | None = None
) -> Iterator[T]:
    """Yield what is measured of each name (or whatever tells what is measured), in their order; by so many processes,
    one name at a time each.

    `measure` and names must be picklable where there are several. Once `late` says so nothing new is begun; what was
    begun is still yielded.
    """
    if workers <= 1:
        for name in names:
            if late is not None and late():
                return
            yield measure(name)
        return
    ahead = len(names) if late is None else workers
    begun: deque[Future[T]] = deque()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for name in names:
                if late is not None and late():
                    break
                begun.append(pool.submit(measure, name))
                if len(begun) > ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def write(path: Path, text: str) -> None:
    """Write a report, under a temporary name until it is whole; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    temporary.replace(path)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _processor() -> str:
    """The processor's name; Python has it only on some systems."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
