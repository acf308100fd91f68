"""Take finished CIFAR-10 runs into the package; see lambdaresnet_zoo/weights/ship.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.weights.ship import main

if __name__ == "__main__":
    sys.exit(main())
