"""How accurate is the textbook ConvNeXt-T? `imagenet_resnet50`, only the network changed.

Cost: 8.91G FLOPs per image (8.91G executed), 28,589,128 parameters, rho_place 0.0000.

A reference arm: nothing is routed.

Command: python main.py --config=configs/imagenet_convnext_t.py --workdir=W
Measured: not yet.

ConvNeXt was published with another recipe: 300 epochs and stronger augmentation.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50


def get_config() -> ConfigDict:
    c = imagenet_resnet50.get_config()
    c.model.name = 'convnext'
    return c
