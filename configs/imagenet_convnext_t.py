"""How accurate is the textbook ConvNeXt-T? `imagenet_resnet50`, only the network changed.

A reference arm: nothing routed; 28,589,128 parameters, 4.46 G multiply-adds.

Command: python main.py --config=configs/imagenet_convnext_t.py --workdir=W
Measured: not yet.

The recipe is not the one ConvNeXt was published with (300 epochs and stronger augmentation).
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50


def get_config() -> ConfigDict:
    c = imagenet_resnet50.get_config()
    c.model.name = 'convnext'
    return c
