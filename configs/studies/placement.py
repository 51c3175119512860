"""E2: does the gap depend on where a network is routed: its head, last blocks, or all?

Run: python -m moe_vision.study run --study=configs/studies/placement.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import (
    DENSE,
    Direction,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from configs.studies.data_set import DataSet
from moe_vision.study.types import Comparison, Figure, Study


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set))


def study_of(data: DataSet) -> Study:
    places = {'head': data.head, 'backbone': data.backbone, 'throughout': data.every}
    expected: dict[str, Direction] = {
        'head': 'negative',
        'backbone': 'positive',
        'throughout': 'none',
    }
    arms, comparisons = {}, {}
    for place, network in places.items():
        arms[place] = arm(data, network)
        arms[f'{place}_dense'] = arm(data, network, DENSE)
        comparisons[f'{place}_gap'] = Comparison(
            place, f'{place}_dense', expected[place], primary=expected[place] != 'none'
        )
    arms |= control_arms(data, data.backbone)
    comparisons |= control_comparisons('backbone_dense', 'backbone')
    return study(
        data,
        'placement',
        question='Does the gap on {set} depend on where the network is routed: '
        'at its head or in its backbone?',
        hypotheses=(
            'Claim of arXiv 2605.15484 for ImageNet-1K (second-hand), tested here on {set}: '
            'routing the head alone, less than 1 % of the compute, loses against the dense twin.',
            'Routing about 38 % of the compute in the backbone with k = 2 gains against its twin.',
        ),
        arms=arms,
        comparisons=comparisons,
        patterns={'placement': ('head_gap', 'backbone_gap')},
        mechanism=True,
        figures=(
            Figure(
                'gap_against_rho',
                'Gap by place, against the routed share of compute',
                {'k = 2': tuple(f'{place}_gap' for place in places)},
            ),
        ),
    )
