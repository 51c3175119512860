"""Do the backbone's family and the axis of Soft MoE matter? `cifar10_standard`, changed as named.

Nothing is dropped in soft routing, so no balance loss is used: this project's own choice, as are
one slot per expert and the size of the group. The dense twin of any arm is
`--config.model.twin=same_width`.

Command: python main.py --config=configs/cifar_ablation.py:cifar10_depthwise --workdir=W
Measured: not yet.

Known of the paper: it sweeps standard and depthwise backbones on CIFAR-10; on CIFAR-100 mixing
over the batch is the main failure of Soft MoE, and dispatch within each image mends it. The
networks, E, placement, hidden size and schedule here are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import cifar10_standard
from moe_vision.config import source

SOFT = {'dataset.name': 'cifar100', 'model.moe.router': 'soft', 'model.moe.losses': {}}
ARMS = {
    # Does the family matter? The same widths and depth, depthwise-separable; and both dense twins.
    'cifar10_depthwise': {'model.name': 'depthwise'},
    'cifar10_depthwise_dense': {'model.name': 'depthwise', 'model.twin': 'same_width'},
    'cifar10_standard_dense': {'model.twin': 'same_width'},
    # Does Soft MoE fail in a CNN because its slots mix images? One arm mixes them, one does not.
    'cifar100_soft_batch': SOFT | {'model.moe.router_args': {'axis': 'batch'}},
    'cifar100_soft_per_sample': SOFT | {'model.moe.router_args': {'axis': 'none'}},
}


def get_config(arm: str = '') -> ConfigDict:
    c = cifar10_standard.get_config()
    c.update_from_flattened_dict(source.chosen('arm', arm, ARMS))
    return c
