"""E7 on digits: what does routing cost in time, and what does that time buy?

Run: python -m moe_vision.study run --study=configs/studies/digits_wall_clock.py --workdir=W
"""

from configs.studies.experiments import wall_clock
from configs.studies.sets import DIGITS
from moe_vision.study.types import Study


def get_study() -> Study:
    return wall_clock.study_of(DIGITS)
