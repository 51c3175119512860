"""Does the family of the backbone matter? ConvNeXt-T, its last blocks routed.

Cost: 12.2G FLOPs per image (13.8G executed), 162,299,464 parameters, rho_place 0.3678.

The last seven blocks, four of the third stage and three of the fourth, have eight experts each that
are copies of them. With --config.model.twin=same_width it is `imagenet_convnext_t` itself, because
nothing in a block sees more than one image.

Command: python main.py --config=configs/imagenet_convnext_k2.py --workdir=W
Measured: not yet.

The paper has a depthwise backbone on CIFAR-10; this network and its E, capacity and recipe are this
project's own choice.
"""

from ml_collections import ConfigDict

from configs import imagenet_convnext_t


def get_config() -> ConfigDict:
    c = imagenet_convnext_t.get_config()
    c.model.moe.placement = 'last_7'
    c.model.moe.group_size = 32  # as in `imagenet_k2`, and the mesh, too
    c.mesh.expert = 8
    return c
