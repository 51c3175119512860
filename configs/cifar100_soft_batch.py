"""Does Soft MoE fail in a CNN because its slots mix images? The arm that mixes them.

`cifar10_standard` on 100 classes with a soft router over groups of images.

Nothing is dropped in soft routing, so no balance loss is used: this project's own choice, as are
one slot per expert and the size of the group.

Command: python main.py --config=configs/cifar100_soft_batch.py --workdir=W
Measured: not yet.

Known of the paper: the batch axis is the dominant failure, per-sample dispatch rescues CIFAR-100.
The backbone, E, placement, hidden size and schedule here are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import cifar10_standard


def get_config() -> ConfigDict:
    c = cifar10_standard.get_config()
    c.dataset.name = 'cifar100'
    c.model.moe.router = 'soft'
    c.model.moe.router_args = {'axis': 'batch'}
    c.model.moe.losses = {}
    return c
