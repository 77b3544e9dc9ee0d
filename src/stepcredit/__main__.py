"""``python -m stepcredit`` is the command line."""

import sys

from stepcredit.cli import main

sys.exit(main())
