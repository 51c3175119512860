"""How long will a cell of each arm of a data set's experiments take?

The pilot trains one short cell of every arm: it trains for one epoch and evaluates as often as a
whole cell. `python -m benchmarks.campaign` reads the timings and adds up the whole campaign. No
other study but the tuning uses its seed, and its accuracies answer nothing.

Run: python -m moe_vision.study run --study=configs/studies/pilot.py:fashion_mnist --workdir=W
"""

from collections.abc import Mapping
from types import ModuleType

from configs.studies import placement, sets, soft, temperature, top_k, wall_clock, width
from configs.studies.common import study
from configs.studies.data_set import DataSet
from moe_vision.study.types import Arm, Study

EXPERIMENTS: Mapping[str, ModuleType] = {
    'width': width,
    'placement': placement,
    'top_k': top_k,
    'soft': soft,
    'temperature': temperature,
    'wall_clock': wall_clock,
}
SEED = 100
EPOCHS = 1.0
VALIDATIONS = 2
SETS = (sets.FASHION_MNIST,)  # those whose whole cell evaluates as often


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set, SETS))


def short(data: DataSet, arm: Arm) -> Arm:
    """The arm for a pilot: of one length, without a seed offset; so arms can turn out equal."""
    return Arm(
        arm.config,
        {
            **arm.overrides,
            **data.before,
            'train.epochs': EPOCHS,
            'train.warmup_epochs': 0.0,
            'eval.every_epochs': EPOCHS / VALIDATIONS,
        },
    )


def study_of(data: DataSet) -> Study:
    """Names arms by experiment and arm, such as `top_k_k2`; keeps the first of equal arms."""
    arms: dict[str, Arm] = {}
    for kind, experiment in EXPERIMENTS.items():
        for name, arm in experiment.study_of(data).arms.items():
            if short(data, arm) not in arms.values():
                arms[f'{kind}_{name}'] = short(data, arm)
    return study(
        data,
        'pilot',
        question='What will a cell of each arm on {set} take?',
        hypotheses=(),
        arms=arms,
        comparisons={},
        figures=(),
        seeds=(SEED,),
    )
