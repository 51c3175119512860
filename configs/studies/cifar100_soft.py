"""E5 on CIFAR-100: does Soft MoE fail because its slots mix images?

Run: python -m moe_vision.study run --study=configs/studies/cifar100_soft.py --workdir=W
"""

from configs.studies.experiments import soft
from configs.studies.sets import CIFAR100
from moe_vision.study.types import Study


def get_study() -> Study:
    return soft.study_of(CIFAR100)
