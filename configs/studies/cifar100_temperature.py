"""E6 on CIFAR-100: does a falling router temperature collapse late in training?

Run: python -m moe_vision.study run --study=configs/studies/cifar100_temperature.py --workdir=W
"""

from configs.studies.experiments import temperature
from configs.studies.sets import CIFAR100
from moe_vision.study.types import Study


def get_study() -> Study:
    return temperature.study_of(CIFAR100)
