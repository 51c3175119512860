"""Can the campaign's instrument find a gain where there must be one, and none where there is none?

The gate of the Fashion-MNIST campaign, on validation accuracy alone. Its argument is the part:

  control: eight domains, each with a mark in the pixels and an order of the labels of its own. A
    learned router ought to gain here: over a dense network of equal FLOPs, over random routes, and
    at least half of what a router gains that is told the domain. Random, frozen and shuffled
    routes, and the dense network with other seeds, ought not to.

Run: python -m moe_vision.study run --study=configs/studies/gate.py:control --workdir=W
"""

from configs.studies.campaign import DENSE_ACTIVE, GATE_SEEDS, K1, MARGIN, arm
from configs.studies.common import CONTROLS, DENSE, DENSE_AGAIN
from moe_vision.config import source
from moe_vision.study.types import Comparison, Study


def get_study(part: str = '') -> Study:
    return source.chosen('part', part, {'control': control})()


def control() -> Study:
    data = {'dataset.domains': 8, 'train.epochs': 12.0}
    oracle = {
        'model.moe.router': 'oracle',
        'model.moe.router_args': {'gate': 'softmax'},
        'model.moe.losses': {},
    }
    return Study(
        name='gate_control',
        question='Does a learned router gain where each image says which of eight tasks it poses?',
        hypotheses=(
            'Two learned experts per image gain over a dense network of their FLOPs.',
            'They gain over random routes.',
        ),
        arms={
            'k2': arm(data),
            'dense_active': arm(data, DENSE_ACTIVE),
            'random': arm(data, CONTROLS['random']),
            'oracle': arm(data, oracle),
            'dense': arm(data, DENSE),
            'k1': arm(data, K1),
            'frozen_random': arm(data, CONTROLS['frozen_random']),
            'shuffled': arm(data, CONTROLS['shuffled']),
            'dense_again': arm(data, DENSE, seed_offset=DENSE_AGAIN),
        },
        seeds=GATE_SEEDS,
        comparisons={
            'k2_minus_dense_active': Comparison('k2', 'dense_active', 'positive', primary=True),
            'k2_minus_random': Comparison('k2', 'random', 'positive', primary=True),
            'oracle_minus_random': Comparison('oracle', 'random', 'positive'),
            'oracle_minus_k2': Comparison('oracle', 'k2'),
            'k1_minus_dense': Comparison('k1', 'dense', 'positive'),
            'k2_minus_dense': Comparison('k2', 'dense', 'positive'),
            'k2_minus_frozen_random': Comparison('k2', 'frozen_random', 'positive'),
            'k2_minus_shuffled': Comparison('k2', 'shuffled', 'positive'),
            'random_minus_dense_active': Comparison('random', 'dense_active'),
            'frozen_random_minus_dense_active': Comparison('frozen_random', 'dense_active'),
            'shuffled_minus_dense_active': Comparison('shuffled', 'dense_active'),
            'dense_again_minus_dense': Comparison('dense_again', 'dense'),
        },
        margin=MARGIN,
        metric='validation_accuracy',
        tuning='None: learning rate and length are those of the pilot that the campaign rests on.',
        mechanism=True,
    )
