"""The command: rows of a small run, resuming, an interruption, limits, bad input."""

from itertools import pairwise

import pytest
import torch
from command import one_line

from lambdaresnet_zoo.tasks.benchmark import compare, layer, run
from lambdaresnet_zoo.tasks.benchmark.peers import Shape, zoo
from lambdaresnet_zoo.tasks.benchmark.results import MACHINE, VERSIONS, ResultFile, surroundings
from lambdaresnet_zoo.weights.benchmarks import UNFOLDED
from lambdaresnet_zoo.weights.files import read_rows, write_rows

SMALL = ("benchmark", "layer", "--shapes", "32,6,5", "--batch-size", 2, 1, "--repeats", 2, "--device", "cpu")


def _keys(rows):
    return list(dict.fromkeys((row["batch"], row["mode"]) for row in rows))


ALL = [("1", "forward"), ("1", "training"), ("2", "forward"), ("2", "training")]


def test_a_small_run_writes_every_row_and_a_table(command, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    status, out, err = command(*SMALL, "--results", path)
    assert status == 0 and err == []
    rows = read_rows(path)
    assert list(rows[0]) == [*layer.FIELDS, *MACHINE, *VERSIONS]
    assert _keys(rows) == ALL and len(rows) == 4 * 8 + 2  # what is not folded, forward
    for row in rows:
        assert row["status"] == "measured" and row["precision"] == "float32"
        low, middle, high = (float(row[f"times_zoo{end}"]) for end in ("_min", "", "_max"))
        assert 0 < low <= middle <= high
        assert float(row["milliseconds"]) > 0 and int(row["rounds"]) in (1, 2)
    peaks = {(row["batch"], row["mode"], row["layer"]): float(row["peak_mib"]) for row in rows}
    for name in {row["layer"] for row in rows} - {UNFOLDED}:
        assert all(peaks[(*small, name)] < peaks[(*large, name)] for small, large in pairwise([ALL[0], ALL[2]]))
    assert any(line.startswith("| 32 | 6 | 5 |") for line in out)


def test_a_rerun_skips_what_is_finished(command, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    assert command(*SMALL, "--results", path)[0] == 0
    before = path.read_bytes()
    monkeypatch.setattr(layer, "compare", _fails)
    assert command(*SMALL, "--results", path)[0] == 0
    assert path.read_bytes() == before


def _fails(*_, **__):
    raise AssertionError("measured again")


def test_other_versions_are_measured_anew_and_other_machines_kept(command, tmp_path):
    path = tmp_path / "rows.csv"
    small = (*SMALL[:4], "--batch-size", 1, "--repeats", 1, "--device", "cpu", "--results", path)
    assert command(*small)[0] == 0
    old = [row | {"code": "older"} for row in read_rows(path)]
    elsewhere = [row | {"device": "NVIDIA H100", "code": "older"} for row in old]
    write_rows(path, [*elsewhere, *old])
    assert command(*small)[0] == 0
    rows = read_rows(path)
    assert rows[: len(elsewhere)] == elsewhere
    assert len(rows) == 2 * len(old) and not any(row["code"] == "older" for row in rows[len(elsewhere) :])


def test_an_interruption_keeps_what_is_finished(command, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    real, calls = layer.compare, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(layer, "compare", interrupted)
    assert command(*SMALL, "--results", path)[0] == 130
    assert _keys(read_rows(path)) == ALL[:2]
    monkeypatch.setattr(layer, "compare", real)
    assert command(*SMALL, "--results", path)[0] == 0
    assert _keys(read_rows(path)) == ALL


def test_check_fails_where_a_target_is_open(command):
    status, out, err = command(*SMALL, "--check")
    assert status == 1 and err == []
    assert sum(line.startswith(("open", "missed")) for line in out) == 4


def test_a_peer_out_of_memory_and_one_too_slow_are_in_the_rows(monkeypatch):
    def measured(work, device):
        work()
        return 1

    monkeypatch.setattr(compare, "peak_memory", measured)
    now = [0.0]
    monkeypatch.setattr(compare, "Clock", lambda device: lambda: now[0])

    def takes(seconds):
        now[0] += seconds

    def hungry():
        raise torch.OutOfMemoryError("CUDA out of memory")

    limits = compare.Limits(repeats=1, pass_seconds=5)
    passes = {"zoo": lambda: takes(9), "fast": lambda: takes(1), "hungry": hungry, "slow": lambda: takes(6)}
    passes["known"] = _fails
    builders = {name: lambda work=work: work for name, work in passes.items()}
    found = compare.compare("zoo", builders, compare.Setting(torch.device("cpu"), "", limits), {"known": "too slow"})
    assert {name: row["status"] for name, row in found.items()} == {
        "zoo": "measured",
        "fast": "measured",
        "hungry": "out of memory",
        "slow": "too slow",
        "known": "too slow",
    }
    assert {name: row["times_zoo"] for name, row in found.items()} == {
        "zoo": "1.0000",
        "fast": "0.1111",
        **dict.fromkeys(("hungry", "slow", "known"), ""),
    }


def test_a_larger_batch_is_not_tried_where_a_smaller_one_was_too_much():
    rows = [
        {"dim": 8, "size": 7, "scope": 5, "mode": "forward", "batch": batch, "layer": name} | found
        for name, batch, found in (
            ("slow", 8, {"status": "measured", "milliseconds": "3000"}),
            ("slower", 8, {"status": "too slow", "milliseconds": ""}),
            ("full", 8, {"status": "out of memory", "milliseconds": ""}),
            ("zoo", 8, {"status": "measured", "milliseconds": "3000"}),
        )
    ]
    history = layer.History(rows)
    limits, names = compare.Limits(pass_seconds=10), [row["layer"] for row in rows]
    told = history.verdicts(rows[0] | {"batch": 32}, [*names, "unknown"], limits)
    assert told == {"slow": "too slow", "slower": "too slow", "full": "out of memory"}
    assert history.verdicts(rows[0] | {"batch": 16}, names, limits) == {"slower": "too slow", "full": "out of memory"}
    assert history.verdicts(rows[0] | {"batch": 1}, ["slow", "full", "zoo"], limits) == {}


def test_the_fastest_peers_are_timed_however_long_they_take():
    limits = compare.Limits(pass_seconds=10)
    assert compare.too_slow("zoo", {"zoo": 90, "a": 20, "b": 49, "c": 51}, limits) == ["c"]
    assert compare.too_slow("zoo", {"zoo": 90, "a": 1, "b": 9, "c": 11}, limits) == ["c"]
    assert compare.too_slow("zoo", {"zoo": 90}, limits) == []


def test_the_input_gets_gradients_and_evaluation_none():
    torch.manual_seed(0)
    net = torch.nn.Conv2d(8, 8, 1)
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    setting = compare.Setting(torch.device("cpu"))
    layer.one_pass(net, x, torch.ones(1, 8, 3, 3), setting)()
    assert net.training and x.grad is not None and net.weight.grad is not None
    x.grad = net.weight.grad = None
    layer.one_pass(net, x.detach(), None, setting)()
    assert not net.training and net.weight.grad is None


def test_evaluation_folds_what_timm_folds_but_of_one_row():
    setting = compare.Setting(torch.device("cpu"))
    x = torch.randn(1, 32, 6, 6)
    for fold in (True, False):
        own = zoo(Shape(32, 6, 5))
        layer.one_pass(own, x, None, setting, fold)()
        assert isinstance(own.norm_q, torch.nn.Identity) is fold
    own = zoo(Shape(32, 6, 5))
    layer.one_pass(own, x.requires_grad_(), torch.ones(1, 32, 6, 6), setting)()
    assert isinstance(own.norm_q, torch.nn.BatchNorm2d)
    setting = compare.Setting(torch.device("cpu"), limits=compare.Limits(repeats=1))
    for mode, expected in (("forward", True), ("training", False)):
        rows = layer.measure(Shape(32, 6, 5), 1, mode, setting, layer.History([]))
        assert (UNFOLDED in [row["layer"] for row in rows]) is expected


def test_autocast_on_a_cpu(command, tmp_path):
    path = tmp_path / "rows.csv"
    small = ("benchmark", "layer", "--shapes", "32,6,5", "--batch-size", 1, "--repeats", 1, "--device", "cpu")
    assert command(*small, "--amp", "--results", path)[0] == 0
    assert {row["precision"] for row in read_rows(path)} == {"bfloat16 autocast"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["layers"], ["layers", "growth"]),
        (["layer", "--shapes", "512,14,4"], ["--shapes", "512,14,4", "odd"]),
        (["layer", "model", "--results", "rows.csv"], ["rows.csv", "folder"]),
        (["layer", "--results", "rows.json"], ["rows.json", ".csv"]),
        (["model", "--models", "resnet50"], ["resnet50", "lambdaresnet50@128"]),
        (["layer", "--device", "cuda:99"], ["cuda:99"]),
        (["layer", "--device", "meta"], ["meta"]),
    ],
)
def test_bad_input_is_told_in_one_line(command, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    one_line(command("benchmark", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--repeats", "0"], ["--memory", "-1"], ["--batch-size", "x"], ["--threads", "0"]])
def test_numbers_that_are_none(command, option):
    status, _, err = command("benchmark", "layer", *option)
    assert status == 2 and f"'{option[1]}' is not" in err[-1]


def test_a_file_of_something_else_is_left_alone(command, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("name,age\nada,36\n")
    one_line(command(*SMALL, "--results", path), path, "other columns")
    assert path.read_text() == "name,age\nada,36\n"


def test_rows_are_of_the_code_that_was_measured():
    where = surroundings(torch.device("cpu"), "float32")
    assert list(where) == [*MACHINE, *VERSIONS] and len(where["code"]) == 12
    assert where["lambda_networks"]
    file = ResultFile(None, layer.KEY, layer.FIELDS, where)
    assert file.here() == []


@pytest.mark.parametrize(
    ("quick", "counts"),
    [
        (False, {"layer": 13 * 3 * 2, "model": 12 * 2, "growth": (9 + 7) * 2, "roofline": 13 * 2 * 2}),
        (True, {"layer": 2 * 2, "model": 2 * 2, "growth": (3 + 2) * 2, "roofline": 2 * 2}),
    ],
)
def test_every_part_has_its_grid(quick, counts):
    setting = compare.Setting(torch.device("cpu"))
    for name, part in run.PARTS.items():
        file = ResultFile(None, *part.columns, surroundings(setting.device, "float32"))
        keys = [key for key, _ in part.units(run.Options(quick=quick), setting, file)]
        assert all(set(key) == set(part.columns[0]) for key in keys)
        assert len({tuple(key.values()) for key in keys}) == len(keys) == counts[name], name


@pytest.mark.slow
def test_growth_draws_what_it_measured(command, tmp_path, monkeypatch):
    monkeypatch.setattr(run.growth, "QUICK", (3, 4))
    monkeypatch.setattr(run.growth, "DIM", 32)
    monkeypatch.setattr(run.growth, "BATCH_SIZE", 4)
    status, out, _ = command("benchmark", "growth", "--quick", "--repeats", 1, "--device", "cpu", "--results", tmp_path)
    assert status == 0 and any(line.startswith("| 3², 1 |") for line in out)
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark_growth.{kind}" for kind in ("csv", "png", "svg")}
