"""Learn eight COCO images by heart, for the README's row and picture; see lambdaresnet_zoo/tasks/detect/overfit.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.tasks.detect.overfit import main

if __name__ == "__main__":
    sys.exit(main())
