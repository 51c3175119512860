"""What will a cell of each arm of the fashion_mnist studies take?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_pilot.py --workdir=W
"""

from configs.studies.experiments import pilot
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return pilot.study_of(FASHION_MNIST)
