"""Lambda layers against 3x3 convolutions on CIFAR-10; see lambdaresnet_zoo/tasks/study_lambda.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lambdaresnet_zoo  # noqa: F401  registers the models
from lambdaresnet_zoo.tasks.study_lambda import main

if __name__ == "__main__":
    sys.exit(main())
