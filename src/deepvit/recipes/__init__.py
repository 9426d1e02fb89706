"""The recipes that ship with the package (YAML), found by name."""
