"""The benchmark of CogVideoX-5B on a CPU, with a network of a few thousand weights: all rows, cut off and resumed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch

from vap_gym.errors import UnknownNameError, VapError

SMALL: dict[str, Any] = {"preset": "small-test", "repeats": 1, "long_repeats": 1}


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import cogvideox_5b

        yield cogvideox_5b


@pytest.fixture(scope="module")
def models(bench: Any) -> Any:
    import cogvideox_5b_models

    return cogvideox_5b_models


@pytest.fixture(scope="module")
def run(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run that is cut off at once, then one of the rows that are not compiled, then one of what is left."""
    out = tmp_path_factory.mktemp("bench") / "page.md"
    out.write_text("# Page\n\nBefore.\n\n<!-- small-test: measured -->\nold\n<!-- small-test: end -->\n\nAfter.\n")
    keys = [row.key for row in bench.rows(bench.SIZES["small-test"]())]
    cut_off = bench.main(**SMALL, out=out, minutes=0.0)
    empty = out.read_text()
    eager = [key for key in keys if "compiled" not in key]
    left = [bench.main(**SMALL, out=out, only=tuple(eager))]
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True  # or pytest keeps all that torch.compile does
    jaxtyping.config.update("jaxtyping_disable", True)  # or torch.compile goes through the checks of shapes, too
    try:
        left.append(bench.main(**SMALL, out=out))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        trace.disabled = False
    return SimpleNamespace(out=out, keys=keys, cut_off=cut_off, empty=empty, left=left, page=out.read_text())


def table(page: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines if line[0] != "row"}


def test_a_run_without_time_measures_nothing_and_says_so(run: SimpleNamespace) -> None:
    assert run.cut_off == len(run.keys) == len(set(run.keys))
    cells = table(run.empty)
    assert list(cells) == run.keys
    assert all(line[0] == "not measured" and float(line[-1].replace(",", "")) > 0 for line in cells.values())


def test_every_row_is_measured_and_the_prose_around_the_table_stays(run: SimpleNamespace) -> None:
    assert run.left == [sum("compiled" in key for key in run.keys), 0]
    cells = table(run.page)
    assert list(cells) == run.keys
    assert "not measured" not in run.page
    assert all(0 < float(line[0]) <= float(line[1]) * 1.01 for line in cells.values())
    assert run.page.startswith("# Page\n\nBefore.\n\n<!-- small-test")
    assert run.page.endswith("<!-- small-test: end -->\n\nAfter.\n")
    assert "old" not in run.page
    assert "Measured on" in run.page


def test_what_was_measured_is_not_measured_again(bench: Any, run: SimpleNamespace, tmp_path: Path) -> None:
    book = json.loads(run.out.with_suffix(".json").read_text())
    measured = book["small-test"]["rows"]
    assert set(measured) == set(run.keys)
    for row in measured.values():
        row["seconds"] = [123.0]
    lost = "codec clip out, tiny"
    del measured[lost]
    (tmp_path / "page.json").write_text(json.dumps(book))
    assert bench.main(**SMALL, out=tmp_path / "page.md") == 0
    again = json.loads((tmp_path / "page.json").read_text())["small-test"]["rows"]
    assert {key for key, row in again.items() if row["seconds"] != [123.0]} == {lost}
    again["text T5, two instructions"]["device"] = "another card"
    book["small-test"]["rows"] = again
    (tmp_path / "page.json").write_text(json.dumps(book))
    bench.main(**SMALL, out=tmp_path / "page.md", only=("text",))
    again = json.loads((tmp_path / "page.json").read_text())["small-test"]["rows"]
    assert again["text T5, two instructions"]["seconds"] != [123.0]


def test_errors_say_what_was_given_and_what_would_work(bench: Any, run: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(run.out.with_suffix(".json").read_text())  # counted already
    given = {**SMALL, "out": tmp_path / "page.md"}
    with pytest.raises(VapError, match=r"Device 'cuda:99' is not on this machine\. Known here: cpu"):
        bench.main(**given, device="cuda:99")
    with pytest.raises(UnknownNameError, match=r"No preset to measure named 'cogvideo'.*Known: cogvideox-1.5-5b"):
        bench.main(preset="cogvideo", out=tmp_path / "page.md")
    with pytest.raises(UnknownNameError, match=r"No part or row named 'stok'\. Did you mean 'stock'"):
        bench.main(**given, only=("stok",))
    (tmp_path / "page.json").write_text("{")
    with pytest.raises(VapError, match=r"page.json' must be JSON of measured rows, got .* Mend it, or remove it"):
        bench.main(**given)


@pytest.mark.parametrize("preset", ["cogvideox-5b", "cogvideox-1.5-5b"])
def test_the_page_has_every_row_of_the_large_models(bench: Any, repo: Path, preset: str) -> None:
    page = (repo / "docs" / "cogvideox_5b.md").read_text()
    begin, end = page.index(f"<!-- {preset}: measured -->"), page.index(f"<!-- {preset}: end -->")
    assert list(table(page[begin:end])) == [row.key for row in bench.rows(bench.SIZES[preset]())]


@torch.no_grad()
def test_the_tiny_decoder_gives_latent_by_latent_what_it_gives_for_the_clip(models: Any) -> None:
    torch.manual_seed(0)
    decoder = models.TinyDecoder(4, (8, 8, 4, 4))
    latents = torch.randn(2, 3, 4, 2, 3)
    whole, _ = decoder(latents)
    assert whole.shape == (2, 12, 3, 16, 24)
    memory, parts = None, []
    for f in range(3):
        part, memory = decoder(latents[:, f : f + 1], memory)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(decoder(latents[:, 1:2])[0], whole[:, 4:8], atol=1e-3)  # the past matters


def test_the_large_models_are_made_in_bfloat16_and_no_branch_is_zero(bench: Any, models: Any) -> None:
    size = bench.SIZES["small-test"]()
    network = models.built(torch.device("cpu"), lambda: models.VideoNetwork.of(size.config))
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert all(bool(p.any()) for p in network.parameters() if p.ndim > 1)
    assert network.transformer.merge.weight[:, network.transformer.merge.out_features :].any()


def test_control_that_is_kept_is_computed_once_a_clip(bench: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vap_gym.world.transformer import ControlledTransformer

    own, seen = ControlledTransformer._control, []
    monkeypatch.setattr(ControlledTransformer, "_control", lambda *given: (seen.append(1), own(*given))[1])
    size = bench.SIZES["small-test"]()
    wanted = [r for r in bench.rows(size) if r.part == "chunk" and r.steps == 4 and r.decoder == "tiny"][:2]
    counts = {}
    for row, call in models.chunk_calls(size, wanted, torch.device("cpu")):
        seen.clear()
        frames = call(row.steps)
        counts[row.control] = len(seen)
        assert frames.shape == (1, 25, 32, 48, 3)
    assert counts == {"each": 4, "once": 1}
