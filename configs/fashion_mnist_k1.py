"""What is lost when each image has one expert instead of two? `fashion_mnist_k2`, only k changed.

Command: python main.py --config=configs/fashion_mnist_k1.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_k2


def get_config() -> ConfigDict:
    c = fashion_mnist_k2.get_config()
    c.model.moe.k = 1
    return c
