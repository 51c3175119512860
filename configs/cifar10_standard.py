"""How does the gap move with the hidden size of a routed head on a standard backbone?

Cost: 248M FLOPs per image (248M executed), 1,925,418 parameters, rho_place 0.0011.

The head adds a routed d -> h -> d to the pooled vector; h is `model.moe.hidden`, and the routed
share of compute grows with it. Try several: --config.model.moe.hidden=64 and so on.

Command: python main.py --config=configs/cifar10_standard.py --workdir=W
Measured: not yet.

Known of the paper: it sweeps a hidden size on CIFAR-10 over standard and depthwise backbones. The
backbones, widths, E, placement, optimizer and schedule here are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.dataset.name = 'cifar10'
    c.dataset.augment = 'pad_crop_flip'
    c.dataset.cache = True
    c.model.args = {'widths': (32, 64, 128), 'depth': 2}
    c.model.moe.placement = 'head'
    c.model.moe.hidden = 512
    c.train.batch_size = 256
    c.train.epochs = 100.0
    c.train.warmup_epochs = 5.0
    c.train.weight_decay = 0.05
    return c
