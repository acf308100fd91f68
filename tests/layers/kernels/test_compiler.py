"""The kernels through Triton's compiler, for cards that need not be there: nothing is run on a GPU.

What the interpreter cannot see: types and layouts that the compiler refuses, more shared memory than a
card has, products that miss the tensor cores, registers spilled to memory.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes that a block may have, by compute capability
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    ("capability", "dtype", "depth"), [(80, "bf16", 64), (90, "bf16", 128), (90, "fp16", 64), (90, "fp32", 64)]
)
def test_compiles(capability, dtype, depth, tmp_path):
    script = Path(__file__).with_name("compile_kernels.py")
    root = Path(__file__).parents[3]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), json.dumps([capability, dtype, depth])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} >= {"output_kernel", "fold_kernel"}
    for row in rows:
        told = {key: value for key, value in row.items() if key != "ptx"}
        assert row["shared"] <= SHARED_MEMORY[capability], told
        assert row["kernel"] == "fold_kernel" or TENSOR_CORES[capability] in row["ptx"], told
    # A schedule that spills is one to try in vain; of each kernel one must not.
    for kernel in {row["kernel"] for row in rows}:
        assert min(row["spilled"] for row in rows if row["kernel"] == kernel) == 0, kernel
