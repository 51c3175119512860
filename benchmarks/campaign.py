"""What the whole campaign of a data set takes, from the cells timed in its pilot.

    python -m benchmarks.campaign [--set=fashion_mnist] [--results=results/fashion_mnist]

Of an arm: the pilot's cell less its training steps (compiling, mostly) once, and for each seed the
training steps at the pilot's images/s and the evaluations and probes of a tuned cell of k2. Seconds
are those of one process; the pilot ran as many as there are cores, so they are core-seconds.
"""

import argparse
from collections.abc import Mapping

from configs.studies import sets
from configs.studies.data_set import DataSet
from configs.studies.experiments import pilot
from moe_vision.study import rows
from moe_vision.study.types import Arm

SETS = {d.name: d for d in sets.SETS}


def seconds(data: DataSet, results: str) -> dict[str, dict[str, float]]:
    """experiment -> arm -> core-seconds of all its cells.

    Raises:
      KeyError: an arm was not timed.
    """
    images = data.recipe['dataset.train_images']
    timed = {name: of[pilot.SEED] for name, of in rows.timings(f'{results}/pilot').items()}
    other = {name: t['seconds'] - pilot.EPOCHS * images / t['images_per_second']
             for name, t in timed.items()}
    places = {repr(arm): name for name, arm in pilot.study_of(data).arms.items()}
    beside = _evaluations(data, results, images)

    def of_arm(arm: Arm) -> float:
        name = places[repr(pilot.short(arm))]
        steps = arm.overrides['train.epochs'] * images / timed[name]['images_per_second']
        return other[name] + len(data.seeds) * (steps + beside)

    return {kind: {name: of_arm(arm) for name, arm in experiment.study_of(data).arms.items()}
            for kind, experiment in pilot.EXPERIMENTS.items()}


def _evaluations(data: DataSet, results: str, images: int) -> float:
    """Seconds beside the training steps of a tuned cell of k2 that had nothing to compile."""
    arm = f'k2_lr{round(data.learning_rate * 1e4)}_e{data.epochs:g}'
    found = [t['seconds'] - data.epochs * images / t['images_per_second']
             for t in rows.timings(f'{results}/tuning')[arm].values() if not t['first']]
    return sum(found) / len(found)


def hours(found: Mapping[str, Mapping[str, float]]) -> float:
    """Core-hours of the campaign."""
    return sum(sum(of.values()) for of in found.values()) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--set', choices=SETS, default='fashion_mnist')
    parser.add_argument('--results', default='results/fashion_mnist')
    given = parser.parse_args()
    data = SETS[given.set]
    found = seconds(data, given.results)
    print('| study | arms | cells | core-hours |\n|---|---|---|---|')
    for kind, of in found.items():
        print(f'| {data.name}_{kind} | {len(of)} | {len(of) * len(data.seeds)} | '
              f'{sum(of.values()) / 3600:.2f} |')
    arms = sum(map(len, found.values()))
    print(f'| all | {arms} | {arms * len(data.seeds)} | {hours(found):.2f} |')


if __name__ == '__main__':
    main()
