"""Ctrl-C while the command starts, in processes of their own whose import of torch waits for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = """
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background may lack
pathlib.Path(__file__).with_name("begun").touch()
time.sleep(300)
"""
SCRIPT = """
import sys
from lambdaresnet_zoo.cli import main
sys.exit(main())
"""


@pytest.fixture
def interrupted(tmp_path):
    """Start Python, interrupt it as it imports torch, and return its status and the lines of stderr."""
    stub = tmp_path / "torch" / "__init__.py"
    stub.parent.mkdir()
    stub.write_text(TORCH)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            deadline = time.monotonic() + 120
            while not (stub.parent / "begun").exists():
                assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            return process.wait(120), process.stderr.read().splitlines()
        finally:
            process.kill()
            process.communicate()

    return run


def test_the_command_ends_with_its_status_and_one_line(interrupted, tmp_path):
    script = tmp_path / "lambdaresnet-zoo"
    script.write_text(SCRIPT)
    assert interrupted(script, "published") == (130, ["interrupted before anything was done"])


@pytest.mark.parametrize(
    "module", [["-m", "lambdaresnet_zoo"], ["-mlambdaresnet_zoo"], ["-u", "-m", "lambdaresnet_zoo"]]
)
def test_so_does_the_module(interrupted, module):
    assert interrupted(*module, "published") == (130, ["interrupted before anything was done"])


def test_another_program_gets_the_interrupt_itself(interrupted, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("try:\n    import lambdaresnet_zoo\nexcept KeyboardInterrupt:\n    raise SystemExit(7)\n")
    assert interrupted(script, "lambdaresnet_zoo") == (7, [])
