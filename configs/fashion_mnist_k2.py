"""Does routing two of eight experts help on 28x28 pictures of clothes?

Cost: 217M FLOPs per image (232M executed), 2,939,114 parameters, rho_place 0.1535.

The last of six blocks of a small convolutional network is routed.

Command: python main.py --config=configs/fashion_mnist_k2.py --workdir=W
Measured: not yet.

Every value here and in `base` is this project's own choice; the paper does not use this set.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.dataset.name = 'fashion_mnist'
    c.dataset.augment = 'pad_crop_flip'
    c.dataset.cache = True
    c.model.args = {'widths': (32, 64, 128), 'depth': 2}
    c.train.batch_size = 256
    c.train.epochs = 30.0
    return c
