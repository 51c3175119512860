"""Configs that ship with the package; each is a copy of the file of that name in `configs/`."""
