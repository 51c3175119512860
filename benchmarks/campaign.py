"""What the whole campaign of a data set takes, from the cells timed in its pilot.

    python -m benchmarks.campaign [--set=fashion_mnist] [--pilot=results/fashion_mnist/pilot]

Of an arm: what its first cell took longer than its second (compiling) once, and for each seed the
training steps at the second's images/s and whatever else that did (evaluations, probes). Seconds
are those of one process; the pilot ran one on each core, so they are core-seconds.
"""

import argparse
from collections.abc import Mapping

from configs.studies import sets
from configs.studies.data_set import DataSet
from configs.studies.experiments import pilot
from moe_vision.study import rows
from moe_vision.study.types import Arm

SETS = {d.name: d for d in sets.SETS}


def seconds(data: DataSet, workdir: str) -> dict[str, dict[str, float]]:
    """experiment -> arm -> core-seconds of all its cells.

    Raises:
      KeyError: an arm was not timed.
    """
    images, timed = data.recipe['dataset.train_images'], rows.timings(workdir)
    places = {repr(arm): name for name, arm in pilot.study_of(data).arms.items()}

    def of_arm(arm: Arm) -> float:
        of = timed[places[repr(pilot.short(arm))]]
        first, second = (of[seed] for seed in pilot.SEEDS)
        each = images / second['images_per_second']  # an epoch
        beside = second['seconds'] - pilot.EPOCHS * each
        whole = arm.overrides['train.epochs'] * each + beside
        return max(first['seconds'] - second['seconds'], 0.0) + len(data.seeds) * whole

    return {kind: {name: of_arm(arm) for name, arm in experiment.study_of(data).arms.items()}
            for kind, experiment in pilot.EXPERIMENTS.items()}


def table(data: DataSet, found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown: a line for each study, and one for all."""
    lines = ['| study | arms | cells | core-hours |', '|---|---|---|---|']
    whole = {f'`{data.name}_{kind}`': [*of.values()] for kind, of in found.items()}
    whole['all'] = [s for of in found.values() for s in of.values()]
    return lines + [f'| {name} | {len(of)} | {len(of) * len(data.seeds)} | {sum(of) / 3600:.1f} |'
                    for name, of in whole.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--set', choices=SETS, default='fashion_mnist')
    parser.add_argument('--pilot', default='results/fashion_mnist/pilot')
    given = parser.parse_args()
    data = SETS[given.set]
    print('\n'.join(table(data, seconds(data, given.pilot))))


if __name__ == '__main__':
    main()
