"""E5 on Fashion-MNIST: does Soft MoE fail because its slots mix images?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_soft.py --workdir=W
"""

from configs.studies.experiments import soft
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return soft.study_of(FASHION_MNIST)
