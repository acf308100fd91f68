"""Fine-tuning against training from scratch; see lambdaresnet_zoo/tasks/study_finetune.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lambdaresnet_zoo  # noqa: F401  registers the models
from lambdaresnet_zoo.tasks.study_finetune import main

if __name__ == "__main__":
    sys.exit(main())
