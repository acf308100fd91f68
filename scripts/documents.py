"""Write the README's tables and the Hub's cards anew; see lambdaresnet_zoo/weights/documents.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdaresnet_zoo.weights.documents import main

if __name__ == "__main__":
    sys.exit(main())
