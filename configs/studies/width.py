"""E1: how does the gap move with the routed share of compute, on two backbone families?

The hidden size of the experts sweeps that share from below 1 % to above 50 %.

Run: python -m moe_vision.study run --study=configs/studies/width.py:digits --workdir=W
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
    arms, comparisons, gaps = {}, {}, {}
    for family, networks in data.sweep.items():
        last = len(networks)
        at_ends: dict[int, Direction] = {1: 'negative', last: 'positive'}
        for number, network in enumerate(networks, 1):
            name = f'{family}_{number}'
            arms[name] = arm(data, network)
            arms[f'{name}_dense'] = arm(data, network, DENSE)
            comparisons[f'{name}_gap'] = Comparison(
                name,
                f'{name}_dense',
                primary=number in (1, last),
                expected=at_ends.get(number, 'none'),
            )
        gaps[family] = tuple(f'{family}_{n}_gap' for n in range(1, last + 1))
    widest = f'standard_{len(data.sweep["standard"])}'
    arms |= control_arms(data, data.sweep['standard'][-1])
    comparisons |= control_comparisons(f'{widest}_dense', widest)
    ends = {family: (names[0], names[-1]) for family, names in gaps.items()}
    return study(
        data,
        'width',
        question='How does the gap to the dense twin move with the routed share of '
        'compute on {set}, and does the family of the backbone matter?',
        hypotheses=(
            'Claim of arXiv 2605.15484 for CIFAR-10, tested here on {set}: the gap is negative '
            'where less than 1 % of the compute is routed and positive where more than half is.',
            'The same two signs appear on a standard and on a depthwise backbone, so the family '
            'is not the active variable.',
        ),
        arms=arms,
        comparisons=comparisons,
        patterns={
            **{f'{family}_reversal': pair for family, pair in ends.items()},
            'both_reversals': tuple(name for pair in ends.values() for name in pair),
        },
        figures=(Figure('gap_against_rho', 'Gap against the routed share of compute', gaps),),
    )
