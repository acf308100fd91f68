"""That a pass holds what its plan says, by the allocator: forward, backward, and embeddings that are kept."""

import pytest
import torch

from lambdaresnet_zoo.layers import LambdaLayer, planned, tiles
from lambdaresnet_zoo.layers.plan import Shape, make_plan
from lambdaresnet_zoo.layers.scratch import release
from lambdaresnet_zoo.tasks.benchmark.memory import peak_memory

SHAPES = (
    Shape(4, 4, 16, 64, 4, 28, 28, 7, 7),
    Shape(4, 4, 16, 64, 1, 28, 28, 23, 23),
    Shape(1, 4, 16, 64, 1, 32, 32, 63, 63),
    Shape(8, 4, 16, 64, 1, 14, 14, 23, 23),
    Shape(8, 4, 16, 32, 2, 15, 10, 9, 9),
)
BEYOND = 1.35
"""Of what a plan says, at most so much: it counts maps and scores, not the small copies beside them."""


def held(shape, plan, training):
    """Bytes at the peak of a pass beyond its outputs."""
    batch, heads, k, v, u, height, width, rows, columns = shape
    sizes = ((batch, heads, k, shape.n), (batch, v, u, shape.n), (k, u, rows, columns), (batch, k, v))
    given = [torch.randn(size) for size in sizes]
    gradient = torch.randn(batch, heads, v, shape.n)
    release()
    if training:
        own = sum(tensor.nbytes for tensor in given)
        return peak_memory(lambda: planned.gradients(plan, gradient, *given, height, width), gradient.device) - own
    return peak_memory(lambda: planned.run(plan, *given, height, width, cache=True), gradient.device) - gradient.nbytes


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("budget", [0, 8, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_a_pass_holds_what_its_plan_says(shape, budget, training):
    plan = make_plan(shape, torch.float32, "cpu", training, memory=budget)
    assert held(shape, plan, training) <= BEYOND * plan.memory


@pytest.mark.parametrize("order", ["lambda", "query", "convolution"])
def test_a_backward_pass_takes_a_chunk_of_images_at_a_time(order):
    one = Shape(1, 4, 16, 64, 1, 14, 14, 23, 23)
    many = one._replace(batch=32)
    lone, all_of_it = (
        held(shape, make_plan(shape, torch.float32, "cpu", True, order, memory=2.0), True) for shape in (one, many)
    )
    # One image's and no more, but for padded copies of queries, values and what arrives, which are of all images.
    tensors = 4 * 32 * one.n * (4 * (16 + 64) + 2 * 64)
    assert all_of_it <= 1.1 * lone + tensors


@pytest.mark.parametrize("budget", [16.0, 8.0, 1.0])
def test_a_smaller_budget_holds_no_more_with_what_it_keeps(budget):
    x = torch.randn(1, 256, 64, 64)
    free, tight = LambdaLayer(256, scope=23).eval(), LambdaLayer(256, scope=23, memory_budget=budget).eval()
    with torch.inference_mode():
        assert peak_memory(lambda: tight(x), x.device) <= 1.05 * peak_memory(lambda: free(x), x.device)


def test_a_compiled_training_step_keeps_no_embeddings():
    layer = LambdaLayer(16, scope=5).train()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 16, 6, 6)).sum().backward()
    assert layer.position.table not in tiles._KEPT
    layer.eval()
    with torch.no_grad():
        compiled(torch.randn(2, 16, 6, 6))
    assert layer.position.table in tiles._KEPT
