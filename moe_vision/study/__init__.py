"""Studies: a set of arms with a pre-registered question, run over paired seeds and reported.

`configs/studies/NAME.py:SET` declares one; `python -m moe_vision.study` runs and reports it.
"""
