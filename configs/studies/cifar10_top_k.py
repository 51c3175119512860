"""E3 and E4 on CIFAR-10: does the gap turn when k falls from 2 to 1, and why?

Run: python -m moe_vision.study run --study=configs/studies/cifar10_top_k.py --workdir=W
"""

from configs.studies.experiments import top_k
from configs.studies.sets import CIFAR10
from moe_vision.study.types import Study


def get_study() -> Study:
    return top_k.study_of(CIFAR10)
