"""Does a routed convolutional network train on real images within two minutes on two CPU cores?

1,437 scans of handwritten digits, 8x8, 10 classes; the last block has 8 experts, 2 per image.

Command: python main.py --config=configs/digits_k2.py --workdir=W
Measured: 98.78 ± 0.58 % test accuracy, mean and sd over seeds 0 to 4, at commit 4dc3d46;
rows in results/digits_k2_and_twin.json.

Every value here and in configs/base.py is this project's own choice; the paper does not use this
set.
"""

from ml_collections import ConfigDict

from moe_vision.config import defaults


def get_config() -> ConfigDict:
    c = defaults()
    c.dataset.name = 'digits'
    c.dataset.augment = 'pad_crop'
    c.dataset.cache = True
    c.model.args = {'widths': (32, 64), 'depth': 2}
    c.train.epochs = 20.0
    return c
