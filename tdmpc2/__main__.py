"""`python -m tdmpc2`."""

from tdmpc2.cli import main

raise SystemExit(main())
