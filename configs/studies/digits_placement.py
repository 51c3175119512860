"""E2 on digits: does it matter whether the head or the backbone is routed?

Run: python -m moe_vision.study run --study=configs/studies/digits_placement.py --workdir=W
"""

from configs.studies.experiments import placement
from configs.studies.sets import DIGITS
from moe_vision.study.types import Study


def get_study() -> Study:
    return placement.study_of(DIGITS)
