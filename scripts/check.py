"""The gate: lint, format, types, tests. Stops at the first that fails."""

import subprocess
import sys

STEPS = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["pytest", "-n", "auto", "--maxprocesses", "8", *sys.argv[1:]],
)

if __name__ == "__main__":
    for step in STEPS:
        print("+", *step, flush=True)
        if status := subprocess.run([sys.executable, "-m", *step]).returncode:
            sys.exit(status)
