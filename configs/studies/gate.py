"""Can the campaign's instrument find a gain where there must be one, and none where there is none?

The gate of the Fashion-MNIST campaign, on validation accuracy alone. Its argument is the part:

  control: eight domains, each with a mark in the pixels and an order of the labels of its own. A
    learned router ought to gain here: over a dense network of equal FLOPs, over random routes, and
    at least half of what a router gains that is told the domain. Random, frozen and shuffled
    routes, and the dense network with other seeds, ought not to.
  underfit: the dense network ought to lack capacity. Go on if both hold: its accuracy on training
    images is less than 1 pp above validation (section "Underfit" of the report), and a dense block
    with the parameters of all experts (`same_params`) gains 1 pp or more. The sd of the gaps over
    these six seeds also decides how many seeds the studies that follow need.

  length: how the gaps change from 8 over 24 to 72 epochs. Run `underfit` first, in a folder of that
    name beside this one, because its cells are those of 24 epochs.

Run: python -m moe_vision.study run --study=configs/studies/gate.py:control --workdir=W
"""

from configs.studies.campaign import (
    DENSE_ACTIVE,
    EPOCHS,
    GATE_MARGIN,
    GATE_SEEDS,
    K1,
    UNTUNED,
    arm,
    scored,
)
from configs.studies.common import CONTROLS, DENSE, DENSE_AGAIN
from configs.studies.data_set import Overrides
from moe_vision.config import source
from moe_vision.study.types import Comparison, FamilyDifference, Study


def get_study(part: str = '') -> Study:
    return source.chosen('part', part, {p.__name__: p for p in (control, underfit, length)})()


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
        margin=GATE_MARGIN,
        metric='validation_accuracy',
        tuning=UNTUNED,
        mechanism=True,
    )


def underfit() -> Study:
    return Study(
        name='gate_underfit',
        question='Does the dense network lack capacity, which experts could supply?',
        hypotheses=('A dense network with the parameters of all experts gains 1 pp or more.',),
        arms={
            'dense': scored(DENSE),
            'same_params': scored({'model.twin': 'same_params'}),
            'k2': scored(),
            'dense_active': scored(DENSE_ACTIVE),
            'k1': scored(K1),
        },
        seeds=GATE_SEEDS,
        comparisons={
            'same_params_minus_dense': Comparison('same_params', 'dense', 'positive', primary=True),
            'k2_minus_dense': Comparison('k2', 'dense'),
            'k2_minus_dense_active': Comparison('k2', 'dense_active'),
            'k1_minus_dense': Comparison('k1', 'dense'),
            'dense_active_minus_dense': Comparison('dense_active', 'dense'),
        },
        margin=1.0,  # less is no room for experts
        metric='validation_accuracy',
        tuning=UNTUNED,
        mechanism=False,
    )


def length() -> Study:
    networks: dict[str, Overrides] = {
        'k2': {},
        'dense_active': DENSE_ACTIVE,
        'dense': DENSE,
        'k1': K1,
    }
    arms = {
        f'{name}_{epochs:g}': scored(change, {'train.epochs': epochs})
        for epochs in (72.0, 8.0, EPOCHS)
        for name, change in networks.items()
    }
    gaps = {
        f'{name}_minus_{baseline}': (name, baseline)
        for name, baseline in (('k2', 'dense_active'), ('k1', 'dense'), ('k2', 'dense'))
    }
    return Study(
        name='gate_length',
        question='How do the gaps change with the length of training?',
        hypotheses=(
            'From 8 to 72 epochs two experts per image gain on the dense network of their FLOPs.',
            'From 8 to 72 epochs one expert per image gains on the dense network.',
        ),
        arms=arms,
        seeds=GATE_SEEDS,
        comparisons={
            f'{gap}_{epochs}': Comparison(f'{name}_{epochs}', f'{baseline}_{epochs}')
            for gap, (name, baseline) in gaps.items()
            for epochs in (8, 24, 72)
        },
        family_differences={  # of the same networks, trained longer
            f'{gap}_72_less_8': FamilyDifference(
                ((f'{gap}_72', f'{gap}_8'),), 'positive', primary=gap != 'k2_minus_dense'
            )
            for gap in gaps
        },
        margin=GATE_MARGIN,
        metric='validation_accuracy',
        tuning=UNTUNED,
        reads=('underfit',),
        mechanism=False,
    )
