"""``python -m deepvit`` is ``deepvit``."""

import sys

from deepvit.cli import main

sys.exit(main())
