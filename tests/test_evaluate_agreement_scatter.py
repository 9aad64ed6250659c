"""Names in the picture of the agreement experiment."""

from itertools import combinations

import numpy as np
import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_names_cover_neither_one_another_nor_the_places_and_stay_inside() -> None:
    from vap_gym.evaluate.agreement_scatter import name_places

    rng = np.random.default_rng(0)
    crowd = {tuple(map(float, place)): [f"policy-{i}"] for i, place in enumerate(rng.uniform(0.55, 1.0, (12, 2)))}
    figure, axis = pyplot.subplots(figsize=(4.6, 4.8))
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axis.scatter(*np.array(list(crowd)).T, label="scripted")
    axis.legend(loc="upper left")
    figure.canvas.draw()
    name_places(axis, crowd)

    names = [text for text in axis.texts if text.get_text()]
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in names]
    assert {text.get_text() for text in names} == {names[0] for names in crowd.values()}
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    for place in crowd:
        x, y = axis.transData.transform(place)
        assert not any(box.contains(x, y) for box in boxes)
    pyplot.close(figure)
