"""Targets held against results that are made up."""

import itertools

import pytest

from lambdaresnet_zoo.tasks.benchmark import layer
from lambdaresnet_zoo.tasks.benchmark.targets import verdicts


def _cell(shape, batch, mode, ratio, memory):
    """A cell where the fastest peer takes ``ratio`` times as long, and the leanest holds 1 / ``memory`` as much."""
    key = {name: str(value) for name, value in layer.key_of(shape, batch, mode).items()}
    common = {**key, "status": "measured", "milliseconds": "1.0", "times_zoo": "1.0", "peak_mib": str(memory)}
    return [
        common | {"layer": "zoo"},
        common | {"layer": "timm", "times_zoo": str(ratio + 1), "milliseconds": str(ratio + 1), "peak_mib": "1.0"},
        common | {"layer": "attention", "times_zoo": str(ratio), "milliseconds": str(ratio), "peak_mib": "9.0"},
        common | {"layer": "attention narrow", "times_zoo": "0.1", "milliseconds": "0.1", "peak_mib": "0.1"},
        common
        | {"layer": "timm global", "status": "out of memory", "milliseconds": "", "times_zoo": "", "peak_mib": ""},
    ]


def _grid(**changed):
    rows = []
    for shape, batch, mode in itertools.product(layer.SHAPES, layer.BATCHES["cpu"], layer.MODES):
        deep = shape.size in (7, 10, 14, 16, 20) and batch > 1
        least = {"forward": 2.0, "training": 1.5}[mode] if deep else 0.95
        rows += _cell(shape, batch, mode, changed.get(f"{shape} {batch} {mode}", least), 0.5 if deep else 3)
    return rows


def _states(found):
    return [str(verdict).split()[0] for verdict in found]


def test_all_met_at_the_line():
    found = verdicts({"layer": _grid()}, cuda=False)
    assert _states(found) == ["met"] * 4
    assert [verdict.expected for verdict in found] == [16, 16, 78, 16]


@pytest.mark.parametrize(
    ("where", "ratio", "states"),
    [
        ("512,14,23 8 forward", 1.99, ["missed", "met", "met", "met"]),
        ("512,14,23 32 training", 1.49, ["met", "missed", "met", "met"]),
        ("64,56,23 1 forward", 0.94, ["met", "met", "missed", "met"]),
        ("512,14,23 1 forward", 0.96, ["met"] * 4),  # a batch that the first target is not about
    ],
)
def test_one_missed_is_named(where, ratio, states):
    found = verdicts({"layer": _grid(**{where: ratio})}, cuda=False)
    assert _states(found) == states
    missed = [verdict for verdict in found if verdict.missed]
    assert all(f"{ratio:.3f} (attention)" in str(verdict) for verdict in missed)
    assert all(where.split()[0] in str(verdict) for verdict in missed)


def test_what_is_not_folded_is_told_beside_and_decides_nothing():
    rows = _grid()
    first = next(row for row in rows if (row["size"], row["batch"], row["mode"]) == ("14", "8", "forward"))
    rows.append(first | {"layer": "zoo unfolded", "times_zoo": "1.25"})
    found = verdicts({"layer": rows}, cuda=False)
    assert _states(found) == ["met"] * 4 and not found[1].aside
    told = str(found[0]).splitlines()[-1].strip()
    assert told == "with nothing folded 0 of 1; missed at 256,14,23 batch 8: 1.600 (attention)"
    pair = [_pair("inference", 1.5), _pair("inference", 1.1) | {"kind": "zoo unfolded"}]
    told = str(verdicts({"model": pair}, cuda=False)[0]).splitlines()[-1].strip()
    assert told == "with nothing folded 1 of 1; least at lambdaresnet26t@256 batch 4: 1.364"


def test_memory_is_held_against_the_leanest():
    rows = [row | {"peak_mib": "0.51"} if row["layer"] == "zoo" and row["batch"] == "8" else row for row in _grid()]
    memory = verdicts({"layer": rows}, cuda=False)[3]
    assert str(memory).startswith("missed") and len(memory.missed) == 8


def test_what_was_not_measured_is_open():
    rows = [row for row in _grid() if row["size"] != "20"]
    found = verdicts({"layer": rows, "model": [], "roofline": []}, cuda=False)
    assert _states(found) == ["open"] * 6
    assert not any(verdict.reached for verdict in found)
    assert "14 of 16" in str(found[0])


def test_a_layer_that_failed_is_not_met():
    """Where this package's own layer has no figure there is no ratio, so the target is not reached."""
    rows = [row | {"times_zoo": ""} if row["size"] == "7" else row for row in _grid()]
    assert "14 of 16" in str(verdicts({"layer": rows}, cuda=False)[0])


def _pair(mode, ratio):
    row = {"model": "lambdaresnet26t", "size": "256", "batch": "4", "mode": mode, "kind": "timm", "status": "measured"}
    return row | {"times_zoo": str(ratio)}


def test_the_pair_and_the_roofline():
    shares = [
        {"dim": "512", "size": "14", "scope": "23", "batch": batch, "mode": "forward", "share_run": share}
        for batch, share in (("8", "0.5"), ("32", "0.49"))
    ]
    found = verdicts({"model": [_pair("inference", 1.3), _pair("training", 0.5)], "roofline": shares}, cuda=False)
    assert _states(found) == ["met", "missed"]
    assert "512,14,23 batch 32: 0.490" in str(found[1])
    assert _states(verdicts({"model": [_pair("inference", 1.29)]}, cuda=False)) == ["missed"]


def test_a_gpu_has_one_more():
    names = [verdict.target for verdict in verdicts({"model": []}, cuda=True)]
    assert "EfficientNet" in names[1] and "4.4x" in names[1]
