"""What the whole campaign of a data set takes, from the cells timed in its pilot.

    python -m benchmarks.campaign [--set=fashion_mnist] [--pilot=results/fashion_mnist/pilot]

Of an arm: compiling once, and for each seed the training steps at the pilot's images/s and whatever
else the pilot's cell did (evaluations). Where a study probes its routed networks, as many test
images more as the probes run, at the evaluations' speed. Seconds are those of one process; the
pilot ran one on each core, so they are core-seconds.
"""

import argparse
from collections.abc import Mapping

import input_pipeline
from configs.studies import pilot
from configs.studies.data_set import DataSet
from moe_vision.config.schema import Config, routed_blocks
from moe_vision.study import rows
from moe_vision.study.load import load
from moe_vision.study.types import Arm
from moe_vision.training import probes as mechanism

SETS = {d.name: d for d in pilot.SETS}


def seconds(data: DataSet, workdir: str) -> dict[str, dict[str, float]]:
    """experiment -> arm -> core-seconds of all its cells.

    Raises:
      KeyError: an arm was not timed.
    """
    timed = rows.timings(workdir)
    places = {repr(arm): name for name, arm in pilot.study_of(data).arms.items()}

    def of_arm(arm: Arm, config: Config, probes: bool) -> float:
        short = pilot.short(data, arm)
        of = timed[places[repr(short)]][pilot.SEED]
        images = {n: o['train.epochs'] * o['dataset.train_images'] for n, o in
                  (('short', short.overrides), ('whole', arm.overrides))}
        beside = (of['seconds'] - of['compile_seconds']
                  - images['short'] / of['images_per_second'])
        if probes:
            sizes = input_pipeline.info(config.dataset).split_sizes
            beside *= 1 + _probed(config) / (pilot.VALIDATIONS * sizes['validation']
                                             + sizes['test'])
        return (of['compile_seconds']
                + len(data.seeds) * (images['whole'] / of['images_per_second'] + beside))

    found = {}
    for kind in pilot.EXPERIMENTS:
        loaded = load(f'configs/studies/{kind}.py:{data.name}')
        found[kind] = {name: of_arm(arm, loaded.configs[name], loaded.study.mechanism)
                       for name, arm in loaded.study.arms.items()}
    return found


def _probed(config: Config) -> int:
    """Test images that the probes of a cell run, all interventions together."""
    model, moe = config.model, config.model.moe
    if model.twin != 'none':
        return 0
    blocks = routed_blocks(moe.placement, model.args.blocks)
    return mechanism.IMAGES * (3 + moe.num_experts * max(len(blocks), 1))


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
    try:
        print('\n'.join(table(data, seconds(data, given.pilot))))
    except KeyError as e:
        parser.error(f'{given.pilot} has no timed cell {e}; run the pilot there: python -m '
                     f'moe_vision.study run --study=configs/studies/pilot.py:{data.name} '
                     f'--workdir={given.pilot}')


if __name__ == '__main__':
    main()
