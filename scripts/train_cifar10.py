"""Train the network for 32x32 images on CIFAR-10; see lambdaresnet_zoo/tasks/train_cifar10.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lambdaresnet_zoo  # noqa: F401  registers the models
from lambdaresnet_zoo.tasks.train_cifar10 import main

if __name__ == "__main__":
    sys.exit(main())
