"""The fault suite at length: `make test-faults`, or `python scripts/faults.py --help`.

A small real sweep is run again and again while processes are killed and paused, the disk fills up, files are damaged
and the clock jumps. Afterwards its numbers must be those of a sweep that nobody disturbed, bit by bit. The suite itself
lies with the tests, in tests/faults/.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests" / "faults"), str(ROOT)]
    raise SystemExit(importlib.import_module("fault_suite").main())
