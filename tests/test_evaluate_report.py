"""Measuring several things side by side."""

import os

from vap_gym.evaluate import report as reports


def about(name: str) -> tuple[str, int]:
    return name.upper(), os.getpid()


def test_measurements_come_in_order_from_one_process_or_several() -> None:
    names = ["reach", "push", "lift"]
    alone = list(reports.each(about, names))
    assert [name for name, _ in alone] == ["REACH", "PUSH", "LIFT"]
    assert {process for _, process in alone} == {os.getpid()}
    spread = list(reports.each(about, names, workers=2))
    assert [name for name, _ in spread] == ["REACH", "PUSH", "LIFT"]
    assert os.getpid() not in {process for _, process in spread}
