"""Where the kernels say that they can serve; no kernel is run."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from lambdaresnet_zoo.layers.kernels import availability, fused_position, unavailable
from lambdaresnet_zoo.layers.kernels.operators import _check

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine that is told what it has."""

    def told(triton=True, interpreter=False, cuda=True, capability=(9, 0), hip=None):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: (triton or None) if name == "triton" else found(name)
        )
        monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreter)))
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return told


def test_serves_three_dtypes_on_a_device_that_is_new_enough(machine):
    machine()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert unavailable(CUDA, dtype) == ""
    assert unavailable(CUDA, torch.float64) == "no kernel for float64"


@pytest.mark.parametrize(
    ("has", "device", "reason"),
    [
        ({"triton": False}, CUDA, "triton is not installed"),
        ({}, CPU, "cpu is no CUDA device, and TRITON_INTERPRET is not set"),
        ({"cuda": False}, CUDA, "torch finds no CUDA device"),
        ({"capability": (7, 5)}, CUDA, "compute capability 7.5 is below 8.0"),
        ({"hip": "7.0"}, CUDA, "not tried on ROCm"),
        ({"interpreter": True}, torch.device("meta"), "meta is neither cpu nor cuda"),
        ({"interpreter": True, "triton": False}, CPU, "triton is not installed"),
    ],
)
def test_says_why_not(machine, has, device, reason):
    machine(**has)
    assert unavailable(device, torch.float32) == reason


def test_the_interpreter_serves_cpu_and_float64(machine):
    machine(interpreter=True, cuda=False)
    assert unavailable(CPU, torch.float64) == ""
    assert unavailable(CPU, torch.int32) == "no kernel for int32"


def test_asked_within_a_compiled_graph(machine):
    machine(interpreter=True, cuda=False)

    @torch.compile(fullgraph=True, backend="eager")
    def double(x):
        return x if unavailable(x.device, x.dtype) else 2 * x

    assert double(torch.ones(1)) == 2


def test_an_operator_that_cannot_serve_says_so(machine):
    machine()
    with pytest.raises(RuntimeError, match="the fused kernel cannot serve: cpu is no CUDA device"):
        fused_position(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n": 5}, "queries have 5 positions, the grid of 2x3 has 6"),
        ({"values": (2, 5, 1, 5)}, r"values must be \[2, V, U, 6\]"),
        ({"table": (7, 1, 3, 3)}, r"the table must be \[K, U, ...\] = \[4, 1, ...\]"),
        ({"table": (4, 1, 3, 2)}, "extents must be odd, got 3x2"),
        ({"dtype": torch.float16}, "one dtype, got torch.float32 and torch.float16"),
        ({"table": (4, 1, 3)}, "must be .* and .4, 1, 3."),
        ({"heads": 2**28}, "too large for the kernels' index"),
    ],
)
def test_what_does_not_fit_is_refused(sizes, message):
    meta = torch.device("meta")
    queries = torch.empty(2, sizes.get("heads", 3), 4, sizes.get("n", 6), device=meta)
    values = torch.empty(sizes.get("values", (2, 5, 1, 6)), device=meta, dtype=sizes.get("dtype", torch.float32))
    table = torch.empty(sizes.get("table", (4, 1, 3, 3)), device=meta)
    with pytest.raises(ValueError, match=message):
        _check(queries, values, table, 2, 3)


def test_importing_the_package_imports_no_kernel():
    code = "import sys, lambdaresnet_zoo.layers.kernels as k; print(f'{k.__name__}.position' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_dtypes_without_their_module():
    assert availability._name(torch.bfloat16) == "bfloat16"
