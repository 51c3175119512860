"""Does Soft MoE fail in a CNN because its slots mix images? The arm that does not mix them.

`cifar100_soft_batch`, only the dispatch axis changed. Compare both with their dense twin:
--config.model.twin=same_width.

Command: python main.py --config=configs/cifar100_soft_per_sample.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import cifar100_soft_batch


def get_config() -> ConfigDict:
    c = cifar100_soft_batch.get_config()
    c.model.moe.router_args.axis = 'none'
    return c
