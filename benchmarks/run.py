"""All benchmarks: ``python -m benchmarks.run [--only NAME] [--json FILE] [--device cuda]``."""

from __future__ import annotations

import sys

from benchmarks.command import NAMES, main

if __name__ == "__main__":
    sys.exit(main(*NAMES))
