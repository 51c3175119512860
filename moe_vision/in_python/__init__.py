"""What a person holds in Python or in a notebook: a run, its history, its pictures.

`moe_vision.train` and `moe_vision.Run` give a `Run`; docs/python.md is the page for users.
"""
