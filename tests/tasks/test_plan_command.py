"""The command `plan`: what it explains, what it fits, what it refuses."""

import json

import pytest
from command import one_line

from lambdaresnet_zoo.layers.plan import COSTS
from lambdaresnet_zoo.tasks import plan


def test_every_lambda_layer_of_a_model_is_explained(command):
    status, out, err = command("plan", "--model", "lambdaresnet50", "--batch-size", 4, "--img-size", 224)
    assert status == 0 and err == []
    shapes = [line for line in out if not line.startswith(" ")]
    assert len(shapes) == 3  # c4 at 14, the first of c5 at 14, the others at 7
    assert shapes[-1].endswith("7x7 positions, 128 values a head") and "stages.3.1, stages.3.2" in shapes[-1]
    assert sum("chosen: query" in line for line in out) == 3
    assert any("not lambda" in line for line in out) and any("not kernel" in line for line in out)
    forced = command("plan", "--model", "lambdaresnet50", "--order", "convolution", "--training")[1]
    assert any("chosen: convolution" in line for line in forced)


def test_a_forced_kernel_is_planned_for_its_device_alone(command, monkeypatch):
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "kernel")
    assert command("plan", "--order", "convolution", "--device", "cuda")[0] == 0


def test_a_model_of_no_size_is_planned_for_one(command):
    status, out, err = command("plan", "--model", "lambda_mobilenetv2_100", "--img-size", 192)
    assert status == 0 and err == [] and any("6x6 positions" in line for line in out)


def test_what_cannot_be_planned_is_one_line(command):
    one_line(command("plan", "--model", "lambdaresnet5O"), "lambdaresnet5O")
    one_line(command("plan", "--order", "kernel"), "kernel", "cpu")
    one_line(command("plan", "--model", "lambdaresnet32px.nope"), "lambdaresnet32px.nope", "lambdaresnet32px.cifar10")
    for memory in ("-1", "nan", "0"):
        assert command("plan", "--memory", memory)[0] == 2
    one_line(command("plan", "--fit", "costs.json", "--device", "nowhere"), "cannot fit for 'nowhere'")


def test_a_fit_writes_costs_that_the_layers_read(command, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "GRID", ((16, 6, 3, 2), (16, 8, 5, 4), (16, 6, 0, 2)))
    path = tmp_path / "costs.json"
    status, out, err = command("plan", "--fit", path)
    assert status == 0 and err == [] and out[-1].startswith(f"wrote {path}")
    costs = json.loads(path.read_text())
    shipped = json.loads(COSTS.read_text())
    assert costs["other"] == shipped["other"] and costs["cpu"] != shipped["cpu"]
    for mode in ("forward", "training"):
        assert {order: set(found) for order, found in costs["cpu"][mode].items()} == {
            order: set(found) for order, found in shipped["cpu"][mode].items()
        }
        assert all(value >= 0 for found in costs["cpu"][mode].values() for value in found.values())
    monkeypatch.setenv("LAMBDARESNET_ZOO_COSTS", str(path))
    assert costs["cpu"]["measured"] in "\n".join(command("plan")[1])


def test_the_fit_finds_the_coefficients_behind_times():
    names = ("call", "score", "window")
    rows = [
        (dict(zip(names, counts, strict=True)), (500 * counts[0] + 2 * counts[1] + 0.5 * counts[2]) * 1e-9)
        for counts in ((1, 1e4, 2e3), (2, 3e5, 1e4), (8, 1e3, 5e5), (1, 7e6, 0), (4, 2e4, 9e6))
    ]
    found = plan._least_squares(rows)
    assert found == pytest.approx({"call": 500, "score": 2, "window": 0.5}, rel=1e-2)
