"""How accurate is the textbook ResNet-50 under the recipe that all ImageNet configs share?

Cost: 8.18G FLOPs per image (8.18G executed), 25,557,032 parameters, rho_place 0.0000.

A reference arm with batch norm throughout and nothing routed. Its recipe is that of all ImageNet
configs: random-resized-crop, RandAugment, mixup, CutMix, label smoothing, stochastic depth, a
moving average of the weights, AdamW, warm-up and cosine, bfloat16.

Command: python main.py --config=configs/imagenet_resnet50.py --workdir=W
Measured: not yet.

The paper's recipe is not known: all of this one is this project's own choice.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.dataset.name = 'imagenet2012'
    c.dataset.image_size = 224
    c.dataset.augment = 'random_resized_crop'
    c.dataset.randaugment_layers = 2
    c.dataset.validation_fraction = 0.01
    c.dataset.workers = 8
    c.model.name = 'resnet'
    c.model.args = {'drop_path': 0.05}
    c.model.dtype = 'bfloat16'
    c.model.moe.placement = 'none'
    c.train.batch_size = 1024
    c.train.epochs = 90.0
    c.train.warmup_epochs = 5.0
    c.train.weight_decay = 0.05
    c.train.label_smoothing = 0.1
    c.train.ema_decay = 0.9999
    c.train.mixup = 0.2
    c.train.cutmix = 1.0
    c.eval.batch_size = 1024
    c.checkpoint.every_epochs = 1.0
    c.log.every_steps = 100
    return c
