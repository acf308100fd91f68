"""Tables and pictures of results, shipped ones and made-up ones."""

import pytest
from PIL import Image

from lambdaresnet_zoo.tasks.benchmark.results import MACHINE, VERSIONS
from lambdaresnet_zoo.tasks.benchmark.run import PARTS
from lambdaresnet_zoo.weights import benchmarks
from lambdaresnet_zoo.weights.benchmark_plot import draw, growth_plots, is_current
from lambdaresnet_zoo.weights.benchmarks import benchmark_rows, benchmark_tables, layer_table, model_table
from lambdaresnet_zoo.weights.files import write_rows

WHERE = {"precision": "float32", "device": "x86_64", "threads": "2", "torch": "2", "timm": "1"}


def _layer(mode, batch, name, milliseconds, times, peak, **other):
    key = {"dim": "512", "size": "14", "scope": "23", "batch": str(batch), "mode": mode, "layer": name}
    figures = {"milliseconds": str(milliseconds), "times_zoo": str(times), "peak_mib": str(peak)}
    return key | {"status": "measured"} | figures | WHERE | other


ROWS = [
    _layer("forward", 8, "zoo", 10, 1, 5),
    _layer("forward", 8, "zoo unfolded", 12, 1.25, 1),
    _layer("forward", 8, "timm", 30, 3.0, 20),
    _layer("forward", 8, "attention", 20, 2.125, 20),
    _layer("forward", 8, "attention narrow", 12, 1.2, 4),
    _layer("training", 8, "zoo", 30, 1, 6),
    _layer("training", 8, "timm", 60, 2.0, 24),
    _layer("training", 8, "attention", 90, 3.0, 12),
    _layer("training", 8, "attention narrow", 27, 0.9, 4),
    _layer("training", 32, "zoo", 30, 1, 6),
    _layer("training", 32, "timm", "", "", "", status="out of memory"),
]


def test_the_layers_line_has_the_fastest_and_the_leanest():
    line = layer_table(ROWS).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == ["512", "14", "23", "2.12 / -", "1.70 / -", "2.00 / -", "0.50 / -"]


def test_the_fastest_is_named_at_the_largest_batch():
    assert layer_table([row for row in ROWS if row["batch"] == "8"]).endswith("| attention / timm | 1.20 / 0.90 |")


def test_the_ratio_is_the_least_of_all_peers():
    """Of paired ratios: a peer's own time may be of a faster moment."""
    rows = [*ROWS[:3], _layer("forward", 8, "attention", 31, 2.5, 20)]
    assert layer_table(rows).splitlines()[2].startswith("| 512 | 14 | 23 | 2.50 | 2.00 | - |")


def test_peers_are_named_at_the_largest_batch_that_was_timed():
    rows = [*ROWS, _layer("forward", 256, "zoo", "", "", "", status="out of memory")]
    assert layer_table(rows).endswith("| attention / timm | 1.20 / 0.90 |")


def test_the_networks_line():
    key = {"model": "lambdaresnet152", "size": "256", "status": "measured"} | WHERE
    efficientnet = {"kind": "efficientnet", "network": "efficientnet_b5", "network_size": "456"}
    zoo = {"kind": "zoo", "network": "lambdaresnet152", "network_size": "256", "times_zoo": "1"}
    rows = [
        key | zoo | {"mode": "inference", "batch": "4"},
        key | zoo | {"kind": "zoo unfolded", "mode": "inference", "batch": "4", "times_zoo": "1.25"},
        key | efficientnet | {"mode": "inference", "batch": "4", "times_zoo": "2.5"},
        key | efficientnet | {"mode": "training", "batch": "2", "times_zoo": "", "status": "out of memory"},
    ]
    table = model_table(rows).splitlines()
    expected = "| `lambdaresnet152` | 256 | 4 / 2 | 83.8 | efficientnet_b5 | 456 | 83.6 | 2.50 / out of memory | - | - "
    expected += "| 1.25 |"
    assert table[2] == expected
    pair = key | {"model": "lambdaresnet26t", "mode": "inference"}
    others = (("zoo", "8", "1"), ("zoo unfolded", "8", "1.25"), ("timm", "8", "1.5"), ("timm", "4", "1.4"))
    rows = [
        pair | {"kind": kind, "network": "a", "network_size": "256", "batch": batch, "times_zoo": times}
        for kind, batch, times in others
    ]
    _, _, fewer, more = model_table(rows).splitlines()
    assert fewer.startswith("| `lambdaresnet26t` | 256 | 4 / - |") and fewer.endswith("| - | - | 1.40 / - | - |")
    assert more.startswith("| `lambdaresnet26t` | 256 | 8 / - |")
    assert more.endswith("| - | - | 1.50 / - (1.20 as built) | 1.25 |")


def test_tables_of_no_results(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "a" / "b" / "c")
    assert set(benchmark_tables().values()) == {"Not measured yet."}


@pytest.mark.parametrize(("device", "told"), [("x86_64", True), ("NVIDIA H100 80GB HBM3", False)])
def test_what_was_not_run_on_a_gpu_is_marked(monkeypatch, tmp_path, device, told):
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "a" / "b" / "c")
    write_rows(benchmarks.RESULTS / "benchmark_layer.csv", [row | {"device": device} for row in ROWS])
    table = benchmark_tables()["benchmark layer"]
    assert ("Not measured on a GPU." in table) == told
    assert f"Measured on {device}, 2 thread(s), float32" in table


def test_machines_have_tables_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "a" / "b" / "c")
    rows = [*ROWS, *(row | {"device": "NVIDIA H100", "precision": "bfloat16 autocast"} for row in ROWS)]
    write_rows(benchmarks.RESULTS / "benchmark_layer.csv", rows)
    table = benchmark_tables()["benchmark layer"]
    assert table.count("| d | size |") == 2 and "Not measured on a GPU." not in table


def _growth():
    rows = []
    for mode in ("forward", "training"):
        for size, batch in ((7, 1), (14, 1), (28, 1), (14, 2), (14, 4)):
            for name in ("zoo", "timm", "attention"):
                row = _layer(mode, batch, name, size * batch, 1, size, size=str(size), dim="128")
                if name == "attention" and size == 28:
                    row |= {"status": "out of memory", "milliseconds": "", "times_zoo": "", "peak_mib": ""}
                rows.append(row)
    return rows


def test_pictures_are_made_and_know_their_rows(tmp_path):
    results = tmp_path / "benchmark_growth.csv"
    rows = [*_growth(), *(row | {"device": "NVIDIA H100", "precision": "float16 autocast"} for row in _growth())]
    write_rows(results, rows)
    plots = growth_plots(results)
    names = ("benchmark_growth", "benchmark_growth_gpu_float16")
    assert {path.name for path in plots} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for picture, its in list(plots.items())[:2]:
        assert not is_current(picture, its)
        draw(its, picture)
        assert is_current(picture, its)
        assert not is_current(picture, its[:-1])
    with Image.open(tmp_path / "benchmark_growth.png") as image:
        image.load()
        assert image.width > 500
    svg = (tmp_path / "benchmark_growth.svg").read_text()
    assert "<svg" in svg and "attention" in svg
    before = (tmp_path / "benchmark_growth.svg").read_bytes()
    draw(plots[tmp_path / "benchmark_growth.svg"], tmp_path / "benchmark_growth.svg")
    assert (tmp_path / "benchmark_growth.svg").read_bytes() == before


@pytest.mark.parametrize("part", PARTS)
def test_shipped_results_have_the_columns_that_are_written(part):
    rows = benchmark_rows(part)
    assert list(rows[0]) == [*PARTS[part].columns[1], *MACHINE, *VERSIONS]
    assert all(row["status"] for row in rows)


def test_shipped_pictures_are_of_the_shipped_results():
    """Else: python scripts/documents.py."""
    for picture, rows in growth_plots(benchmarks.GROWTH).items():
        assert is_current(picture, rows), picture
