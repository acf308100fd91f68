"""Compare `train` with timm's train.py in time and memory of a step; see lambdaresnet_zoo/tasks/compare_train.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.tasks.compare_train import main

if __name__ == "__main__":
    sys.exit(main())
