"""E2 on Fashion-MNIST: does it matter whether the head or the backbone is routed?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_placement.py --workdir=W
"""

from configs.studies.experiments import placement
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return placement.study_of(FASHION_MNIST)
