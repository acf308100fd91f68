"""The kernels' tests under Triton's interpreter, on CPU.

The interpreter of Triton 3.6 fails with numpy 2.4 in any loop whose bound is no constant ("only
0-dimensional arrays can be converted to Python scalars"); that of 3.8 does not.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_under_the_interpreter(needs_kernels):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # small arrays, and workers beside this one
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", str(HERE / needs_kernels)]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
