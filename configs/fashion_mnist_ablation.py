"""What changes if `fashion_mnist_k2` is dense, takes one expert, or is soft? The argument says it.

Nothing is dropped in soft routing, so no balance loss is used: this project's own choice, as are
one slot per expert and the size of the group.

Command: python main.py --config=configs/fashion_mnist_ablation.py:k1 --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_k2
from moe_vision.config import source

SOFT = {'model.moe.router': 'soft', 'model.moe.losses': {}}
ARMS = {
    # What does the dense network do in the same place?
    'dense': {'model.twin': 'same_width'},
    # What is lost when each image has one expert instead of two?
    'k1': {'model.moe.k': 1},
    # What does Soft MoE do when its slots mix the images of a group?
    'soft_batch': SOFT | {'model.moe.router_args': {'axis': 'batch'}},
    # Is it the mixing that hurts? Here each image is alone, and all eight experts see it.
    'soft_per_sample': SOFT | {'model.moe.router_args': {'axis': 'none'}},
}


def get_config(arm: str = '') -> ConfigDict:
    c = fashion_mnist_k2.get_config()
    c.update_from_flattened_dict(source.chosen('arm', arm, ARMS))
    return c
