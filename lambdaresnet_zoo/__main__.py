"""`python -m lambdaresnet_zoo`, the same as the command `lambdaresnet-zoo`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
