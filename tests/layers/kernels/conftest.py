"""Where the kernels run: compiled, on a CUDA device; or under Triton's interpreter, on CPU.

The interpreter is asked for before Triton is imported, and another test may have imported it: so
``test_interpreter.py`` starts the tests of ``NEED_KERNELS`` in a process of their own. On a CUDA
device they run in this process, too.
"""

import pytest
import torch

from lambdaresnet_zoo.layers.kernels import unavailable
from lambdaresnet_zoo.layers.kernels.availability import interpreted

NEED_KERNELS = ("test_operators.py", "test_position.py")
DEVICE = torch.device("cpu" if interpreted() or not torch.cuda.is_available() else "cuda")
collect_ignore = list(NEED_KERNELS) if unavailable(DEVICE, torch.float32) else []


def pytest_generate_tests(metafunc):
    if "needs_kernels" in metafunc.fixturenames:
        metafunc.parametrize("needs_kernels", NEED_KERNELS)


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def draw_inputs(device):
    """Leaves [B, H, K, N], [B, V, U, N] and [K, U, Rh, Rw] that require gradients; the table in float32 at least."""

    def draw_inputs(batch, heads, k, u, v, height, width, scope, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        n = height * width
        table_dtype = torch.promote_types(dtype, torch.float32)
        return tuple(
            torch.randn(shape, generator=generator).to(device, to).requires_grad_()
            for shape, to in (
                ((batch, heads, k, n), dtype),
                ((batch, v, u, n), dtype),
                ((k, u, *scope), table_dtype),
            )
        )

    return draw_inputs
