"""Estimates what the whole campaign of a data set takes, from the cells timed in its pilot.

    python -m benchmarks.campaign [--set=fashion_mnist] [--pilot=results/fashion_mnist/pilot]

An arm compiles once. Each of its seeds trains at the pilot's images/s, and evaluates for as long as
the pilot's cell did. If a study probes its routed networks, it also runs the test images of the
probes, at the speed of the evaluations. Seconds are those of one process; the pilot ran one process
on each core, so they are core-seconds.
"""

import argparse
from collections.abc import Mapping

import input_pipeline
from configs.studies import pilot
from configs.studies.data_set import DataSet
from moe_vision.common.paths import expanded
from moe_vision.config.schema import Config, routed_blocks
from moe_vision.study import stopwatch
from moe_vision.study.load import load
from moe_vision.study.types import Arm
from moe_vision.training import probes as mechanism

SETS = {d.name: d for d in pilot.SETS}


def seconds(data: DataSet, workdir: str) -> dict[str, dict[str, float]]:
    """experiment -> arm -> core-seconds of all its cells.

    Raises:
      KeyError: an arm was not timed.
    """
    timed = stopwatch.timings(workdir)
    places = {repr(arm): name for name, arm in pilot.study_of(data).arms.items()}

    def arm_seconds(arm: Arm, config: Config, probes: bool) -> float:
        short = pilot.short(data, arm)
        times = timed[places[repr(short)]][pilot.SEED]
        images = {
            n: o['train.epochs'] * o['dataset.train_images']
            for n, o in (('short', short.overrides), ('whole', arm.overrides))
        }
        evaluating = (
            times['seconds']
            - times['compile_seconds']
            - images['short'] / times['images_per_second']
        )
        if probes:
            sizes = input_pipeline.info(config.dataset).split_sizes
            evaluating *= 1 + _probed(config) / (
                pilot.VALIDATIONS * sizes['validation'] + sizes['test']
            )
        training = images['whole'] / times['images_per_second']
        return times['compile_seconds'] + len(data.seeds) * (training + evaluating)

    result = {}
    for kind in pilot.EXPERIMENTS:
        loaded = load(f'configs/studies/{kind}.py:{data.name}')
        result[kind] = {
            name: arm_seconds(arm, loaded.configs[name], loaded.study.mechanism)
            for name, arm in loaded.study.arms.items()
        }
    return result


def _probed(config: Config) -> int:
    """Test images that the probes of a cell run, all interventions together."""
    model, moe = config.model, config.model.moe
    if model.twin != 'none':
        return 0
    blocks = routed_blocks(moe.placement, model.args.blocks)
    return mechanism.IMAGES * (3 + moe.num_experts * max(len(blocks), 1))


def table(data: DataSet, seconds_of: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table in Markdown, with a line for each study and one for all."""
    lines = ['| study | arms | cells | core-hours |', '|---|---|---|---|']
    arms = {f'`{data.name}_{kind}`': [*by_arm.values()] for kind, by_arm in seconds_of.items()}
    arms['all'] = [s for by_arm in seconds_of.values() for s in by_arm.values()]
    return lines + [
        f'| {name} | {len(s)} | {len(s) * len(data.seeds)} | {sum(s) / 3600:.1f} |'
        for name, s in arms.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--set', choices=SETS, default='fashion_mnist')
    parser.add_argument('--pilot', type=expanded, default='results/fashion_mnist/pilot')
    args = parser.parse_args()
    data = SETS[args.set]
    try:
        print('\n'.join(table(data, seconds(data, args.pilot))))
    except KeyError as e:
        parser.error(
            f'{args.pilot} has no timed cell {e}; run the pilot there: python -m '
            f'moe_vision.study run --study=configs/studies/pilot.py:{data.name} '
            f'--workdir={args.pilot}'
        )


if __name__ == '__main__':
    main()
