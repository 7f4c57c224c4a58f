"""`python -m emask` does what `emask` does."""

from __future__ import annotations

import sys

from emask.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
