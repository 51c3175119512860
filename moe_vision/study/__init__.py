"""Studies: arms that answer a pre-registered question over paired seeds.

A file `configs/studies/NAME.py` declares one for each data set, or for each part of a larger
question; `python -m moe_vision.study` runs and reports it.
"""
