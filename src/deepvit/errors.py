"""The one exception that means "the user can mend this": the command line prints it as one line, exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for; its text is one line that names the thing and the way out.

    It is a ``ValueError``, so library users may catch that; the command line turns it into one line on
    standard error and exit code 2, without a traceback.
    """
