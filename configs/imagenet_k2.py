"""Is the gap positive at ImageNet scale when two experts are taken per image?

The blocks of the last stage of a convolutional network are routed.

Command: python main.py --config=configs/imagenet_k2.py --workdir=W
Measured: not yet.

Known of the paper: backbone placement with about 38 % of the compute routed, k = 2 above and
k = 1 below the dense network. Its backbone, E, capacity, optimizer, epochs, batch and
augmentation are not known: those here are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.dataset.name = 'imagenet2012'
    c.dataset.image_size = 224
    c.dataset.augment = 'random_resized_crop'
    c.dataset.validation_fraction = 0.01
    c.dataset.workers = 8
    c.model.args = {'widths': (64, 128, 256, 512), 'depth': 3}
    c.model.dtype = 'bfloat16'
    c.model.moe.placement = 'last_3'
    c.train.batch_size = 1024
    c.train.epochs = 90.0
    c.train.warmup_epochs = 5.0
    c.train.weight_decay = 0.05
    c.train.label_smoothing = 0.1
    c.eval.batch_size = 1024
    c.log.every_steps = 100
    return c
