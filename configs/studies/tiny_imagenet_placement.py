"""E2 on Tiny-ImageNet: does it matter whether the head or the backbone is routed?

Run: python -m moe_vision.study run --study=configs/studies/tiny_imagenet_placement.py --workdir=W
"""

from configs.studies.experiments import placement
from configs.studies.sets import TINY_IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return placement.study_of(TINY_IMAGENET)
