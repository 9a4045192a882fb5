"""`python -m snapfusion` is the command `snapfusion`."""

import sys

from snapfusion.cli import main

sys.exit(main())
