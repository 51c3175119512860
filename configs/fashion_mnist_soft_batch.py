"""What does Soft MoE do when its slots mix the images of a group? `fashion_mnist_k2`, soft instead.

Nothing is dropped in soft routing, so no balance loss is used: this project's own choice, as are
one slot per expert and the size of the group.

Command: python main.py --config=configs/fashion_mnist_soft_batch.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_k2


def get_config() -> ConfigDict:
    c = fashion_mnist_k2.get_config()
    c.model.moe.router = 'soft'
    c.model.moe.router_args = {'axis': 'batch'}
    c.model.moe.losses = {}
    return c
