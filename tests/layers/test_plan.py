"""The plan: what it picks, what forces it, what it says, and its costs."""

import itertools
import json

import pytest
import torch

from lambdaresnet_zoo.layers import LambdaLayer
from lambdaresnet_zoo.layers.plan import COSTS, NEAR, Shape, candidates, explain_plan, features, make_plan

C4 = Shape(8, 4, 16, 64, 1, 14, 14, 23, 23)
DETECTION = Shape(8, 4, 16, 64, 1, 16, 16, 9, 9)
C2 = Shape(2, 4, 16, 16, 1, 56, 56, 23, 23)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("IMPL", "COSTS", "MEMORY"):
        monkeypatch.delenv(f"LAMBDARESNET_ZOO_{name}", raising=False)


def test_the_fastest_that_fits_is_picked_and_in_training_the_leanest_about_as_fast():
    one = C4._replace(batch=1)  # holds little, whatever the plan
    for shape, training in itertools.product((C4, C2, DETECTION, one), (False, True)):
        plan = make_plan(shape, torch.float32, "cpu", training)
        usable = [other for other in candidates(shape, torch.float32, "cpu", training) if not other.note]
        fastest = min(other.seconds for other in usable if other.memory <= 256 * 2**20)
        if training and shape != one:
            assert plan.seconds <= NEAR * fastest
            assert plan.memory == min(other.memory for other in usable if other.seconds <= NEAR * fastest)
        else:
            assert plan.seconds == fastest
        assert {other.order for other in usable} == {"lambda", "query", "convolution"}


def test_costs_decide(tmp_path, monkeypatch):
    """Costs under which a product of the query order is dear: another order is picked."""
    costs = json.loads(COSTS.read_text())
    costs["cpu"]["forward"]["query"]["value_product"] = 1e3
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(costs))
    before = make_plan(C4, torch.float32, "cpu")
    monkeypatch.setenv("LAMBDARESNET_ZOO_COSTS", str(path))
    assert before.order == "query" and make_plan(C4, torch.float32, "cpu").order != "query"
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    monkeypatch.setenv("LAMBDARESNET_ZOO_COSTS", str(damaged))
    with pytest.raises(ValueError, match=r"LAMBDARESNET_ZOO_COSTS .*damaged.json cannot be read"):
        make_plan(C4, torch.float32, "cpu")


def test_a_memory_budget_overrules_speed(monkeypatch):
    free = make_plan(DETECTION, torch.float32, "cpu")
    tight = make_plan(DETECTION, torch.float32, "cpu", memory=free.memory / 2**20 / 2)
    assert tight.memory <= free.memory / 2 and tight.seconds > free.seconds
    monkeypatch.setenv("LAMBDARESNET_ZOO_MEMORY", str(free.memory / 2**20 / 2))
    assert make_plan(DETECTION, torch.float32, "cpu") == tight
    least = make_plan(DETECTION, torch.float32, "cpu", memory=1e-6)  # nothing fits: what needs least
    assert least.memory == min(
        plan.memory for plan in candidates(DETECTION, torch.float32, "cpu", memory=1e-6) if not plan.note
    )


@pytest.mark.parametrize("order", ["lambda", "query", "convolution"])
def test_an_order_can_be_forced(order, monkeypatch):
    assert make_plan(C4, torch.float32, "cpu", order=order).order == order
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", order)
    assert make_plan(C4, torch.float32, "cpu").order == order
    assert make_plan(C4, torch.float32, "cpu", order="query").order == "query"  # the argument comes first
    assert f"{order} is forced" in explain_plan(C4) and f"chosen: {order}" in explain_plan(C4)


def test_what_cannot_be_forced_says_why(monkeypatch):
    with pytest.raises(ValueError, match=r"order='kernel' cannot be used: .*cpu"):
        LambdaLayer(8, order="kernel")(torch.randn(1, 8, 4, 4))
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "fft")
    with pytest.raises(
        ValueError, match="LAMBDARESNET_ZOO_IMPL must be one of lambda, query, convolution, kernel, got 'fft'"
    ):
        LambdaLayer(8)(torch.randn(1, 8, 4, 4))
    for budget in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"memory_budget must be above 0 MiB and finite, got {budget}"):
            LambdaLayer(8, memory_budget=budget)


@pytest.mark.parametrize("value", ["abc", "-1", "inf", "nan"])
def test_a_budget_that_is_none_is_named(value, monkeypatch):
    monkeypatch.setenv("LAMBDARESNET_ZOO_MEMORY", value)
    with pytest.raises(ValueError, match=f"LAMBDARESNET_ZOO_MEMORY must be a number of MiB .*, got '{value}'"):
        make_plan(C4, torch.float32, "cpu")


def test_a_budget_that_is_none_is_told_as_it_was_given(monkeypatch):
    monkeypatch.setenv("LAMBDARESNET_ZOO_MEMORY", "8")
    with pytest.raises(ValueError, match=r"must be a number of MiB of at least 0, got '-1.0'"):
        explain_plan(C4, memory=-1.0)


def test_an_empty_map_is_named():
    with pytest.raises(ValueError, match="a map of 0x14 has no position"):
        make_plan(C4._replace(height=0), torch.float32, "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        {"scratch_mib": {}},
        {"scratch_mib": 3},
        {"memory_mib": "a"},
        {"memory_mib": None},
        {"forward": {"query": {"call": float("nan")}}},
        {"training": {"query": {"call": -1.0}}},
    ],
    ids=str,
)
def test_costs_that_are_none_are_named(damage, tmp_path, monkeypatch):
    costs = json.loads(COSTS.read_text())
    costs["cpu"] |= damage
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(costs))
    monkeypatch.setenv("LAMBDARESNET_ZOO_COSTS", str(path))
    with pytest.raises(ValueError, match=r"LAMBDARESNET_ZOO_COSTS .*costs.json is no cost model; .* plan --fit"):
        make_plan(C4, torch.float32, "cpu")


def test_graphs_of_symbolic_sizes_take_the_order_that_is_forced(monkeypatch):
    layer, x = LambdaLayer(8, scope=3).eval(), torch.randn(1, 8, 4, 4)

    def convolutions():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), layer(x))
        return sum("conv2d" in str(node.target) for node in program.graph.nodes)

    assert convolutions() == 2  # the projection, and the order that is right for every size
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "query")
    assert convolutions() == 1
    monkeypatch.setenv("LAMBDARESNET_ZOO_IMPL", "Query")
    for graph in (torch.export.export, torch.jit.trace):
        with pytest.raises(Exception, match="LAMBDARESNET_ZOO_IMPL must be one of"):
            graph(layer, (x,))


def test_an_explanation_names_every_candidate_and_why():
    lines = explain_plan(C4, memory=6).splitlines()
    assert lines[1].startswith("chosen: query")
    assert len(lines) == 1 + len(candidates(C4, torch.float32, "cpu", memory=6))
    text = "\n".join(lines)
    assert "times as long" in text and "over the memory budget of 6 MiB" in text
    assert any(line.startswith("not kernel") and "cpu" in line for line in lines)


def test_an_explanation_holds_where_nothing_fits_or_nothing_takes_time():
    chosen, *others = explain_plan(C4, memory=1e-3).splitlines()[1:]
    assert chosen.endswith("over the memory budget of 0.001 MiB, as all are, but it needs least")
    assert all("over the memory budget" in line or "cpu" in line for line in others)
    assert "no prediction" not in "\n".join(
        line for line in explain_plan(C4._replace(batch=0)).splitlines() if "kernel" not in line
    )
    lines = explain_plan(DETECTION, training=True).splitlines()
    assert len({line.split(":")[0] for line in lines}) == len(lines)  # no two are told alike
    assert ": 1 times as long" not in "\n".join(lines)


def test_counts_are_those_of_the_sums():
    found = candidates(C4, torch.float32, "cpu", training=True)
    n = 196
    for plan in found:
        if plan.tiling and plan.tiling.whole:
            counts = features(C4, plan)
            assert counts["value_product"] == 8 * 4 * n * n * 64
            if plan.method == "offset":
                assert counts["offset_product"] == 8 * 4 * n * (27 * 27) * 16
            else:
                assert counts["score_product"] == 8 * 4 * n * n * 16
    # A scope of 9 in clipped rows of 4 queries sees 8, 12, 12 and 8 of 16 rows; padded, 12 each time.
    shares = {
        plan.tiling.y.padded: features(DETECTION, plan)["value_product"] / (8 * 4 * 256 * 256 * 64)
        for plan in candidates(DETECTION, torch.float32, "cpu")
        if plan.method == "query" and (plan.tiling.y.tile, plan.tiling.x.tile) == (4, 16)
    }
    assert shares == {True: 12 / 16, False: 10 / 16}
    plain = next(plan for plan in candidates(C4, torch.float32, "cpu") if plan.order == "lambda")
    assert features(C4, plain)["product"] == 8 * n * n * 16 * 64


def test_one_image_is_trained_without_embeddings_and_many_with_them():
    for batch, method in ((1, "offset"), (32, "query")):
        for side in (7, 14, 20):
            plan = make_plan(Shape(batch, 4, 16, 64, 1, side, side, 23, 23), torch.float32, "cpu", training=True)
            assert plan.method == method
            evaluated = make_plan(Shape(batch, 4, 16, 64, 1, side, side, 23, 23), torch.float32, "cpu")
            assert evaluated.method == "query"  # embeddings are kept


def test_columns_that_every_tile_sees_are_cut_by_offset_alone_an_image_at_a_time():
    shape = Shape(8, 4, 16, 32, 1, 28, 28, 55, 55)
    cut = [
        plan
        for plan in candidates(shape, torch.float32, "cpu", training=True)
        if plan.tiling is not None and plan.tiling.x.tiles > 1
    ]
    assert {plan.method for plan in cut} == {"offset"} and {plan.chunk for plan in cut} == {1}
    counts = {(plan.tiling.y.tile, plan.tiling.x.tile): features(shape, plan) for plan in cut}[7, 14]
    # Rows of 7 queries see 28 rows, by 34 offsets; the 14 queries across see 28 columns, by 41.
    assert counts["offset"] == 8 * 4 * 784 * 34 * 41 and counts["score"] == 8 * 4 * 784 * 784
    assert counts["offset_table"] == 8 * 4 * 2 * 16 * 34 * 41  # images, rows of tiles, tiles, K
    assert counts["window"] == 8 * 4 * 32 * 784  # one for each row of tiles
    large = Shape(1, 4, 16, 64, 1, 112, 112, 223, 223)  # a table of each tile, its gradient's sum and what is added
    found = {(p.tiling.y.tile, p.tiling.x.tile): p for p in candidates(large, torch.float32, "cpu", True) if p.tiling}
    assert found[1, 1].memory > 3 * 112 * 16 * 112 * 112 * 4


def test_shapes_of_every_kind_have_a_plan():
    for batch, side, extent, u in itertools.product((0, 1, 300), ((1, 1), (3, 50), (112, 112)), (1, 5, 223), (1, 4)):
        shape = Shape(batch, 4, 16, 16, u, *side, extent, extent)
        for training in (False, True):
            for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
                assert make_plan(shape, dtype, device, training).chunk >= 1


def test_devices_that_were_not_measured_say_so():
    text = explain_plan(C4, torch.bfloat16, "xpu")
    assert "not measured" in text.splitlines()[0]
    assert make_plan(C4, torch.bfloat16, "xpu").order == "query"
