"""What the experiments share: the arms of a data set, twins, and the controls of every study.

An arm is the data set's recipe with keys overridden. A twin is the same config with one switch, so
everything but the routed places stays equal: `dense` is `same_width`, the block that one expert
copies. The report gives its cost ratio to a routed arm beside each gap.
"""

from collections.abc import Mapping
from typing import Any, Literal

from configs.studies.data_set import DataSet, Network, Overrides
from moe_vision.study.types import Arm, Comparison, Figure, Study, Verdict

Direction = Verdict | Literal['none']
DENSE: Overrides = {'model.twin': 'same_width'}
DENSE_AGAIN = 1000  # seed offset of dense against dense
CONTROLS: Mapping[str, Overrides] = {
    # Do routes drawn at random do as well? Their gates are learned, by the task alone.
    'random': {
        'model.moe.router': 'random',
        'model.moe.router_args': {'gate': 'softmax'},
        'model.moe.losses': {},
    },
    # Do routes that never learn do as well?
    'frozen_random': {'model.moe.router': 'frozen_random'},
    # Does it matter which image goes where? Learned routes are dealt to other images.
    'shuffled': {'model.moe.router': 'shuffled'},
}


def arm(data: DataSet, network: Network, *changes: Overrides, seed_offset: int = 0) -> Arm:
    """The recipe of `data`, a network, and what this arm changes; later keys win."""
    overrides: dict[str, Any] = {
        **data.recipe,
        'train.learning_rate': data.learning_rate,
        'train.epochs': data.epochs,
        **network.overrides,
    }
    for change in changes:
        overrides |= change
    return Arm(data.config, overrides, seed_offset)


def control_arms(data: DataSet, network: Network) -> dict[str, Arm]:
    """Routers that know nothing in the network's routed places, and its twin with other seeds."""
    arms = {name: arm(data, network, change) for name, change in CONTROLS.items()}
    return arms | {'dense_again': arm(data, network, DENSE, seed_offset=DENSE_AGAIN)}


def control_comparisons(dense: str = 'dense', routed: str = '') -> dict[str, Comparison]:
    """Each control against the twin, and the learned router, if named, against each; exploratory.

    `dense_again` against the twin is the null gap: what two sets of seeds differ by.
    """
    comparisons = {
        f'{name}_minus_dense': Comparison(name, dense) for name in (*CONTROLS, 'dense_again')
    }
    if routed:
        comparisons |= {f'{routed}_minus_{name}': Comparison(routed, name) for name in CONTROLS}
    return comparisons


def study(
    data: DataSet,
    kind: str,
    *,
    question: str,
    hypotheses: tuple[str, ...],
    arms: Mapping[str, Arm],
    comparisons: Mapping[str, Comparison],
    figures: tuple[Figure, ...],
    patterns: Mapping[str, tuple[str, ...]] | None = None,
    mechanism: bool = False,
    latency_arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
) -> Study:
    """A study of one data set; `{set}` in the texts is its name; `seeds` are by default its own."""

    def named(text: str) -> str:
        return text.replace('{set}', data.name)

    return Study(
        name=f'{data.name}_{kind}',
        question=named(question),
        hypotheses=tuple(named(h) for h in hypotheses),
        arms=arms,
        seeds=seeds or data.seeds,
        comparisons=comparisons,
        margin=data.margin,
        seed_mode=data.seed_mode,
        patterns=patterns or {},
        tuning=data.tuning,
        mechanism=mechanism,
        latency_arms=latency_arms,
        figures=figures,
    )
