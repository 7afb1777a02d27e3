"""``python -m bonsaigpt`` is ``bonsai``."""

import sys

from bonsaigpt.cli import main

sys.exit(main())
