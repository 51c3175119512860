"""E7 on Fashion-MNIST: what does routing cost in time, and what does that time buy?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_wall_clock.py --workdir=W
"""

from configs.studies.experiments import wall_clock
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return wall_clock.study_of(FASHION_MNIST)
