"""A short cell of every arm of a data set's experiments: what a whole campaign will take.

It trains for one epoch and evaluates as often as a whole cell. `python -m benchmarks.campaign`
reads the timings. Its seed is used by no other study but the tuning, and its accuracies answer
nothing.
"""

from collections.abc import Mapping
from types import ModuleType

from configs.studies.data_set import DataSet
from configs.studies.experiments import placement, soft, temperature, top_k, wall_clock, width
from configs.studies.experiments.common import study
from moe_vision.study.types import Arm, Study

EXPERIMENTS: Mapping[str, ModuleType] = {
    'width': width, 'placement': placement, 'top_k': top_k, 'soft': soft,
    'temperature': temperature, 'wall_clock': wall_clock}
SEED = 100
EPOCHS = 1.0
VALIDATIONS = 2


def short(data: DataSet, arm: Arm) -> Arm:
    """The arm for a pilot: of one length, without a seed offset; so arms can turn out equal."""
    return Arm(arm.config, {**arm.overrides, **data.before, 'train.epochs': EPOCHS,
                            'train.warmup_epochs': 0.0, 'eval.every_epochs': EPOCHS / VALIDATIONS})


def study_of(data: DataSet) -> Study:
    """Arms are named by experiment and arm: `top_k_k2`; of those with equal overrides the
    first."""
    arms: dict[str, Arm] = {}
    for kind, experiment in EXPERIMENTS.items():
        for name, arm in experiment.study_of(data).arms.items():
            if short(data, arm) not in arms.values():
                arms[f'{kind}_{name}'] = short(data, arm)
    return study(
        data, 'pilot', question='What will a cell of each arm on {set} take?', hypotheses=(),
        arms=arms, comparisons={}, figures=(), seeds=(SEED,))
