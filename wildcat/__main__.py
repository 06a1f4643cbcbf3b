"""`python -m wildcat` is the command `wildcat`."""

from wildcat.cli import main

raise SystemExit(main())
