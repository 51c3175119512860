"""E6: does a router whose temperature falls during training collapse late?

Run: python -m moe_vision.study run --study=configs/studies/temperature.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import (
    DENSE,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from configs.studies.data_set import DataSet, Overrides
from moe_vision.study.types import Comparison, Figure, Study

# name: schedule and where it ends; all start at 1. The noise is that of the constant arm.
SCHEDULES = {
    'linear_01': ('linear', 0.1),
    'linear_03': ('linear', 0.3),
    'sigmoid_01': ('sigmoid', 0.1),
    'cosine_01': ('cosine', 0.1),
}


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set))


def study_of(data: DataSet) -> Study:
    arms = {'dense': arm(data, data.backbone, DENSE), 'constant': arm(data, data.backbone)}
    arms |= {
        name: arm(data, data.backbone, _moving(*schedule)) for name, schedule in SCHEDULES.items()
    }
    schedules = ('constant', *SCHEDULES)
    comparisons = {f'{name}_gap': Comparison(name, 'dense') for name in schedules}
    comparisons |= {
        'linear_03_minus_linear_01': Comparison('linear_03', 'linear_01', 'positive', primary=True),
        'sigmoid_minus_linear_01': Comparison('sigmoid_01', 'linear_01', 'positive', primary=True),
        'linear_01_minus_constant': Comparison('linear_01', 'constant'),
        'sigmoid_minus_constant': Comparison('sigmoid_01', 'constant'),
    }
    arms |= control_arms(data, data.backbone)
    comparisons |= control_comparisons('dense', 'constant')
    return study(
        data,
        'temperature',
        question='Does a router whose temperature falls during training '
        'collapse late on {set}, and does the form of the schedule matter?',
        hypotheses=(
            'Claim of arXiv 2605.15484 (second-hand), tested here on {set}: a linear fall to 0.1 '
            'peaks and then collapses late in training, a linear fall to 0.3 does not; so at the '
            'end of training the latter is better.',
            'A sigmoid fall to 0.1 does not collapse either; so at the end of training it is '
            'better than the linear one.',
        ),
        arms=arms,
        comparisons=comparisons,
        patterns={'late_collapse': ('linear_03_minus_linear_01', 'sigmoid_minus_linear_01')},
        mechanism=True,
        figures=(
            Figure(
                'traces',
                'Temperature, gate entropy and validation accuracy',
                {'temperature schedule': schedules},
            ),
        ),
    )


def _moving(kind: str, end: float) -> Overrides:
    return {
        'model.moe.router_args': {'noise': 'gaussian', 'temperature': kind, 'temperature_end': end}
    }
