"""The program ``deepvit``: a module of its own, by whose presence the package knows that it need not load models yet.

``deepvit --help`` then answers at once; ``deepvit.cli`` registers the models with timm before a command runs.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line."""
    from deepvit.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
