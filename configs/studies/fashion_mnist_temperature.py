"""E6 on Fashion-MNIST: does a falling router temperature collapse late in training?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_temperature.py --workdir=W
"""

from configs.studies.experiments import temperature
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return temperature.study_of(FASHION_MNIST)
