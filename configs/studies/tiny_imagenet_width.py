"""E1 on Tiny-ImageNet: how does the gap move with the routed share of compute, on two backbones?

Run: python -m moe_vision.study run --study=configs/studies/tiny_imagenet_width.py --workdir=W
"""

from configs.studies.experiments import width
from configs.studies.sets import TINY_IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return width.study_of(TINY_IMAGENET)
