"""Is it the mixing of images that hurts? `fashion_mnist_soft_batch`, only the axis changed.

Every expert sees every image, so eight experts are run where a hard router runs k.

Command: python main.py --config=configs/fashion_mnist_soft_per_sample.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_soft_batch


def get_config() -> ConfigDict:
    c = fashion_mnist_soft_batch.get_config()
    c.model.moe.router_args.axis = 'none'
    return c
