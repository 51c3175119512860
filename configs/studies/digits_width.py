"""E1 on digits: how does the gap move with the routed share of compute, on two backbones?

Run: python -m moe_vision.study run --study=configs/studies/digits_width.py --workdir=W
"""

from configs.studies.experiments import width
from configs.studies.sets import DIGITS
from moe_vision.study.types import Study


def get_study() -> Study:
    return width.study_of(DIGITS)
