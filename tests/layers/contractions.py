"""What the orders of contraction are given, small enough to be held against the plain ones."""

import torch

NAMES = ("queries", "values", "table", "lambdas")


def tensors(size, scope, batch=3, u=1, k=3, v=4, heads=2, dtype=torch.float64, device="cpu"):
    """Queries, values, table and content lambdas, which ask for gradients."""
    torch.manual_seed(0)
    height, width = size
    n = height * width
    rows, columns = scope or (2 * height - 1, 2 * width - 1)
    shapes = ((batch, heads, k, n), (batch, v, u, n), (k, u, rows, columns), (batch, k, v))
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]
