"""Does routing the last blocks help on 200 classes at 64x64?

Cost: 6.51G FLOPs per image (7.11G executed), 80,293,128 parameters, rho_place 0.2280.

Command: python main.py --config=configs/tiny_imagenet_k2.py --workdir=W
Measured: not yet.

The paper uses this set, but how is not known: every value here is this project's own choice.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.dataset.name = 'tiny_imagenet'
    c.dataset.augment = 'random_resized_crop'
    c.model.args = {'widths': (64, 128, 256, 512), 'depth': 2}
    c.model.moe.placement = 'last_2'
    c.train.batch_size = 256
    c.train.epochs = 100.0
    c.train.warmup_epochs = 5.0
    c.train.weight_decay = 0.05
    c.train.label_smoothing = 0.1
    return c
