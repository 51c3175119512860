"""E5 on Tiny-ImageNet: does Soft MoE fail because its slots mix images?

Run: python -m moe_vision.study run --study=configs/studies/tiny_imagenet_soft.py --workdir=W
"""

from configs.studies.experiments import soft
from configs.studies.sets import TINY_IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return soft.study_of(TINY_IMAGENET)
