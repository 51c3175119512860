"""Which learning rate suits the twin and k2 on the validation split of digits?

Run: python -m moe_vision.study run --study=configs/studies/digits_tuning.py --workdir=W
"""

from configs.studies.experiments import tuning
from configs.studies.sets import DIGITS
from moe_vision.study.types import Study


def get_study() -> Study:
    return tuning.study_of(DIGITS)
