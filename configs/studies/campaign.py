"""The Fashion-MNIST campaign: what its studies share, a regime where either answer is possible.

The images are shrunk to 14x14, and the network is so small that its dense form underfits: it lacks
capacity, which experts could supply. `gate` checks that it is so before anything else runs.

The table has the cells that each study trains itself, in the order in which the studies run, and
the core-hours that they take if 24 epochs take every network 330 s. Wider ones take longer:
`study run --dry_run` says how long, once a cell of theirs has run. The first 40 core-hours end
with `explore vit`; the parts after it stand in the order of their worth.

| study | cells | core-hours |
|---|---|---|
| gate control | 54 | 2.48 |
| gate underfit | 30 | 2.75 |
| gate length | 48 | 7.33 |
| confirm tuning | 56 | 5.13 |
| confirm | 168 | 15.40 |
| explore length | 0 | 0.00 |
| explore wider | 24 | 2.20 |
| explore vit tuning | 24 | 2.20 |
| explore vit | 24 | 2.20 |
| explore controls | 66 | 6.05 |
| explore data | 24 | 2.20 |
| explore groups | 36 | 3.30 |
| explore trunk | 24 | 2.20 |
| explore soft | 24 | 2.20 |
| explore family | 36 | 3.30 |
| explore places | 36 | 3.30 |
| explore experts | 18 | 1.65 |
| explore widest | 24 | 2.20 |
"""

from collections.abc import Mapping
from typing import Any

from configs.studies.data_set import Overrides
from moe_vision.study.types import Arm

CONFIG = 'configs/fashion_mnist_k2.py'
EPOCHS = 24.0
GATE_SEEDS = tuple(range(100, 106))  # of the gate and the tuning; reported seeds begin at 1000
SEEDS = tuple(range(1000, 1012))  # reported; the gate's sd decides how many
RATES = (3e-3, 1e-2, 3e-2, 1e-1)  # peak learning rates that are tried
GATE_MARGIN = 0.3
# A gap within it counts as none. It is less than a third of the 1.7 pp that a dense network gains
# in the gate from the FLOPs of a second expert, and with the gate's sds twelve seeds cannot show
# that a gap is much smaller.
MARGIN = 0.5
# By the arms that `confirm` tunes: the rates that it chose.
CHOSEN = {
    'dense': 1e-1,
    'dense_active': 1e-1,
    'dense_h32': 1e-1,
    'dense_h64': 3e-2,
    'k1': 1e-2,
    'k2': 3e-2,
    'k2_h32': 3e-2,
    'per_sample_4': 3e-2,
}
# What `python -m moe_vision.report.drops` prints for runs of k1: a dense twin drops as many. ()
# leaves that arm out, so write the shares here before the controls are registered.
K1_DROPS: tuple[float, ...] = ()
UNTUNED = 'None: learning rate and length are those of the pilot that the campaign rests on.'
RECIPE: Overrides = {
    'dataset.image_size': 14,
    'dataset.validation_fraction': 0.05,
    'dataset.resident': True,
    'model.args': {'widths': (4, 8), 'depth': 1},
    'model.moe.placement': 'last_1',
    'model.moe.expert_args': {'norm_groups': 2},
    'model.moe.group_size': 256,
    'train.batch_size': 256,
    'train.learning_rate': 1e-2,
    'train.epochs': EPOCHS,
    'eval.every_epochs': 4.0,
    'eval.batch_size': 512,
    'checkpoint.every_epochs': 1000.0,
    'log.every_steps': 100,
}
# Scored beside accuracy. Rows of one study serve in another only where all keys are equal, these
# included, so all studies of the campaign but the control, which has neither, take both from here.
FIT: Overrides = {'eval.train_images': 10_000}  # does the network underfit?
CAPACITIES: Overrides = {'eval.capacity_factors': (1.0, 1.25)}  # of arms that can drop choices
K1: Overrides = {'model.moe.k': 1}
DENSE_ACTIVE: Overrides = {'model.twin': 'same_active_flops'}  # of the arm's k


def arm(*changes: Mapping[str, Any], seed_offset: int = 0) -> Arm:
    """The recipe with two of eight experts, and what this arm changes; later keys win."""
    overrides = dict(RECIPE)
    for change in changes:
        overrides |= change
    return Arm(CONFIG, overrides, seed_offset)


def scored(*changes: Mapping[str, Any], seed_offset: int = 0) -> Arm:
    """The same, scored on training images and, if it can drop choices, at other capacities, too."""
    overrides = arm(*changes).overrides
    routed = overrides.get('model.twin', 'none') == 'none'
    drops = routed and overrides.get('model.moe.router') != 'soft'
    return arm(FIT, CAPACITIES if drops else {}, *changes, seed_offset=seed_offset)
