"""E6 on Tiny-ImageNet: does a falling router temperature collapse late in training?

Run: python -m moe_vision.study run --study=configs/studies/tiny_imagenet_temperature.py --workdir=W
"""

from configs.studies.experiments import temperature
from configs.studies.sets import TINY_IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return temperature.study_of(TINY_IMAGENET)
