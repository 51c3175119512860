"""Does the family of the backbone matter? ConvNeXt-T, its last blocks routed.

The last seven blocks, four of the third stage and three of the fourth, have eight experts each that
are copies of them; rho_place is 0.368. With --config.model.twin=same_width it is
`imagenet_convnext_t` itself: nothing in a block sees more than one image.

Command: python main.py --config=configs/imagenet_convnext_k2.py --workdir=W
Measured: not yet.

That the paper has a depthwise backbone is known of CIFAR-10; this network and its E, capacity and
recipe are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import imagenet_convnext_t


def get_config() -> ConfigDict:
    c = imagenet_convnext_t.get_config()
    c.model.moe.placement = 'last_7'
    c.model.moe.group_size = 32  # as in `imagenet_k2`, and the mesh, too
    c.mesh.expert = 8
    return c
