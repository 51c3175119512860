"""E6 on ImageNet-1K: does a falling router temperature collapse late in training?

Run: python -m moe_vision.study run --study=configs/studies/imagenet_temperature.py --workdir=W
"""

from configs.studies.experiments import temperature
from configs.studies.sets import IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return temperature.study_of(IMAGENET)
