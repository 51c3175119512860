"""Which learning rate and length of training suit the twin and k2 on the validation split?

Both train on one grid, before any other study of the data set is registered. Then read the arms'
table of the report, column 'final validation accuracy, %', and write the setting whose mean over
the two arms is highest into `sets`; every arm uses it. No other study uses these seeds.

Run: python -m moe_vision.study run --study=configs/studies/tuning.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import DENSE, arm, study
from configs.studies.data_set import DataSet
from moe_vision.study.types import Comparison, Study

SEEDS = (100, 101, 102)


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set, [d for d in sets.SETS if d.rates]))


def study_of(data: DataSet) -> Study:
    """Arms are named by the learning rate in 1e-4 and the epochs: `k2_lr30_e15`."""
    arms, comparisons = {}, {}
    for rate in data.rates:
        for epochs in data.lengths:
            setting = f'lr{round(rate * 1e4)}_e{epochs:g}'
            change = {'train.learning_rate': rate, 'train.epochs': epochs}
            arms |= {
                f'dense_{setting}': arm(data, data.backbone, DENSE, change),
                f'k2_{setting}': arm(data, data.backbone, change),
            }
            comparisons[f'k2_minus_dense_{setting}'] = Comparison(
                f'k2_{setting}', f'dense_{setting}'
            )
    return study(
        data,
        'tuning',
        question='Which learning rate and length of training suit the dense twin '
        'and k2 on the validation split of {set}?',
        hypotheses=(),
        arms=arms,
        comparisons=comparisons,
        figures=(),
        seeds=SEEDS,
    )
