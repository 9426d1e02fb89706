"""Class folders, for the command that tells one kind of data from the other."""

from data.conftest import folder

__all__ = ["folder"]
