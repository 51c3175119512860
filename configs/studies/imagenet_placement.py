"""E2 on ImageNet-1K: does it matter whether the head or the backbone is routed?

Run: python -m moe_vision.study run --study=configs/studies/imagenet_placement.py --workdir=W
"""

from configs.studies.experiments import placement
from configs.studies.sets import IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return placement.study_of(IMAGENET)
