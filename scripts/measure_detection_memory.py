"""Measure the peak memory of detectors; see lambdaresnet_zoo/tasks/detect/memory.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.tasks.detect.memory import main

if __name__ == "__main__":
    sys.exit(main())
