"""The kernels' tests under Triton's interpreter, on CPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(
    path.name for path in HERE.glob("test_*.py") if "draw_inputs" in path.read_text() and path != Path(__file__)
)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("file", FILES)
def test_under_the_interpreter(file):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header", str(HERE / file)]
    done = subprocess.run(
        command, env={**environment, "TRITON_INTERPRET": "1"}, cwd=HERE.parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
