"""What does the dense network do where `imagenet_k2` routes? Its twin, nothing else changed.

Cost: 8.25G FLOPs per image (8.25G executed), 22,048,328 parameters, rho_place 0.3790.

Command: python main.py --config=configs/imagenet_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.twin = 'same_width'
    return c
