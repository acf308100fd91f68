"""Take CIFAR-10 runs of a study into the package; see lambdaresnet_zoo/tasks/ship.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lambdaresnet_zoo  # noqa: F401  registers the models
from lambdaresnet_zoo.tasks.ship import main

if __name__ == "__main__":
    sys.exit(main())
