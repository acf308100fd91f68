"""Compare `validate` with timm's validate.py in digits and time; see lambdaresnet_zoo/tasks/compare_validate.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.tasks.compare_validate import main

if __name__ == "__main__":
    sys.exit(main())
