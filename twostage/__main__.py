"""``python -m twostage``."""

import sys

from twostage.cli import main

sys.exit(main())
