"""Validate on ImageNet or other images: the command `lambdaresnet-zoo validate`, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["validate", *sys.argv[1:]]))
