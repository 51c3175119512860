"""Which learning rate suits the twin and k2 on the validation split of fashion_mnist?

Run: python -m moe_vision.study run --study=configs/studies/fashion_mnist_tuning.py --workdir=W
"""

from configs.studies.experiments import tuning
from configs.studies.sets import FASHION_MNIST
from moe_vision.study.types import Study


def get_study() -> Study:
    return tuning.study_of(FASHION_MNIST)
