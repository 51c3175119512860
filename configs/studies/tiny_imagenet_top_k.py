"""E3 and E4 on Tiny-ImageNet: does the gap turn when k falls from 2 to 1, and why?

Run: python -m moe_vision.study run --study=configs/studies/tiny_imagenet_top_k.py --workdir=W
"""

from configs.studies.experiments import top_k
from configs.studies.sets import TINY_IMAGENET
from moe_vision.study.types import Study


def get_study() -> Study:
    return top_k.study_of(TINY_IMAGENET)
