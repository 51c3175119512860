"""Writes a study file that asks of your own images whether sparse experts help, and at what cost.

    python -m moe_vision.study new --dataset=image_folder --data_dir=D --backbone=conv --hours=8 \\
        --out=my_study.py

It trains a network for some seconds to see how fast this machine is, chooses seeds and length of
training so that the whole study takes the hours that you give, and prints what the study could
detect, what it costs, and what to run next. The file is yours to read and to change.
"""

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence

import input_pipeline
from input_pipeline import DatasetConfig, DatasetInfo
from input_pipeline.cores import cores as usable_cores
from input_pipeline.cores import memory
from input_pipeline.metadata import facts
from input_pipeline.registry import find
from moe_vision.common.command_line import Parser
from moe_vision.common.errors import NotWritten, UserError, unknown
from moe_vision.common.paths import expanded
from moe_vision.config import rules
from moe_vision.study import design, study_file
from moe_vision.study.design import Budget
from moe_vision.study.load import Loaded, load
from moe_vision.study.run import plan
from moe_vision.study.study_file import Choices

PARTS = ('gate', 'answer')
_MEMORY = 0.25  # of the machine's that decoded images may take in all processes together


def main(arguments: Sequence[str]) -> None:
    """Writes the file and prints what to expect.

    Raises:
      UserError, DataError: a mistake, or a budget that is too small; nothing is written.
    """
    args = _parse(arguments)
    choices, info = _choices(args)
    parts = _loaded(choices, info)
    speed, cores = args.images_per_second, args.cores or usable_cores()
    k2 = parts['answer'].configs['k2']
    if not speed:
        rules.check_data(k2, reads=True)
        from moe_vision.study.run import timed

        print('training k2 for some seconds, to see how fast this machine is', file=sys.stderr)
        speed = timed.images_per_second(k2)
        cores = timed.shared_by(cores)
    budget = design.budget(
        args.hours * cores,
        cores,
        speed,
        choices.sizes.batch_size,
        info.split_sizes['train'],
        plan.training_flops(parts['gate'].configs['same_params']) / plan.training_flops(k2),
    )
    choices = _with(choices, budget, args.hours, cores, speed)
    _loaded(choices, info)
    _write(args.out, study_file.text(choices, info))
    print('\n'.join(_summary(args, choices, info, budget, cores, speed)))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser('moe_vision.study new', __doc__)
    parser.add_argument('--dataset', required=True, help='a prepared set, such as image_folder')
    parser.add_argument('--data_dir', default='', help="where it lies; '' is the usual folder")
    parser.add_argument('--backbone', default='conv', help=', '.join(design.BACKBONES))
    parser.add_argument(
        '--hours',
        type=float,
        required=True,
        help='that the study may take, on all cores that it uses',
    )
    parser.add_argument('--out', required=True, help='the file to write, such as my_study.py')
    parser.add_argument(
        '--cores', type=int, default=0, help='how many cores to use; 0 is all of this machine'
    )
    parser.add_argument(
        '--images_per_second', type=float, default=0.0, help='speed of one core; 0 measures it'
    )
    parser.add_argument('--image_size', type=int, default=0, help='side in pixels; 0 chooses one')
    parser.add_argument(
        '--sd', type=float, default=0.5, help='assumed sd of paired gaps over seeds, pp'
    )
    args = parser.parse(arguments)
    if args.backbone not in design.BACKBONES:
        raise unknown('backbone', args.backbone, design.BACKBONES)
    for flag, least in (('hours', 1e-3), ('sd', 1e-3), ('images_per_second', 0), ('cores', 0)):
        if not least <= getattr(args, flag) < 1e9:
            raise UserError(f'--{flag} is {getattr(args, flag):g}; give a number above 0.')
    if args.image_size and not 4 <= args.image_size <= 1024:
        raise UserError(f'--image_size is {args.image_size}; allowed: 4 to 1024, or 0 to choose.')
    args.out = expanded(args.out)
    if not args.out.endswith('.py') or ':' in args.out:
        raise UserError(f"--out is '{args.out}'; give a file that ends in .py, without a colon.")
    if os.path.lexists(args.out):
        raise UserError(f"--out: '{args.out}' exists, and is not replaced; give another name.")
    if not os.path.isdir(os.path.dirname(args.out) or '.'):
        raise UserError(f"--out: the folder of '{args.out}' does not exist; make it first.")
    return args


def _choices(args: argparse.Namespace) -> tuple[Choices, DatasetInfo]:
    """What the data set decides, with the shortest run; and its metadata."""
    data_dir = os.path.abspath(expanded(args.data_dir)) if args.data_dir else ''
    stored = facts(find(args.dataset), data_dir).image_shape
    own = None if stored[0] is None or stored[1] is None else max(stored[0], stored[1])

    def info(fraction: float) -> DatasetInfo:
        return input_pipeline.info(
            DatasetConfig(
                name=args.dataset,
                data_dir=data_dir,
                validation_fraction=fraction,
                image_size=args.image_size or own or 32,
            )
        )

    fraction = design.validation_fraction(info(0).split_sizes['train'])
    known = info(fraction)
    sizes = design.sizes(args.backbone, known, own, args.image_size)
    decoded = sum(known.split_sizes.values()) * sizes.image_size**2 * stored[2]
    stem = os.path.splitext(os.path.basename(args.out))[0]
    choices = Choices(
        name=re.sub('[^a-z0-9]+', '_', stem.lower()).strip('_') or 'study',
        dataset=args.dataset,
        data_dir=data_dir,
        backbone=args.backbone,
        sizes=sizes,
        validation_fraction=fraction,
        resident=decoded * (args.cores or usable_cores()) < _MEMORY * memory(),
        seeds=design.SEEDS[0],
        steps=design.STEPS[0],
    )
    return choices, known


def _with(choices: Choices, budget: Budget, hours: float, cores: int, speed: float) -> Choices:
    length = (
        f'{budget.seeds} seeds and {budget.steps:,} steps follow from {hours:g} hours on {cores} '
        f'core{"s" * (cores > 1)}, at {speed:,.0f}\nimages/s for k2 on one core.'
    )
    return dataclasses.replace(choices, seeds=budget.seeds, steps=budget.steps, length=length)


def _loaded(choices: Choices, info: DatasetInfo) -> dict[str, Loaded]:
    """Both parts of the file, checked as every study is."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, 'study.py')
        with open(file, 'w', encoding='utf-8') as f:
            f.write(study_file.text(choices, info))
        return {part: load(f'{file}:{part}') for part in PARTS}


def _write(out: str, text: str) -> None:
    try:
        with open(out, 'x', encoding='utf-8') as f:
            f.write(text)
    except FileExistsError as e:
        raise UserError(f"--out: '{out}' exists, and is not replaced; give another name.") from e
    except OSError as e:
        raise NotWritten(f"--out: '{out}' cannot be written: {e.strerror}.") from e


def _summary(
    args: argparse.Namespace,
    choices: Choices,
    info: DatasetInfo,
    budget: Budget,
    cores: int,
    speed: float,
) -> list[str]:
    sizes, test, validation = (
        choices.sizes,
        info.split_sizes['test'],
        info.split_sizes['validation'],
    )
    size, images = sizes.image_size, info.split_sizes['train']
    lines = [
        f'wrote {args.out}: {info.name}, {images:,} training, {validation:,} validation and '
        f'{test:,} test images at {size}x{size}, {choices.backbone} {sizes.network}',
        '',
        f'What it costs, at {speed:,.0f} images/s for k2 on one core:',
        f'  a run: {budget.steps:,} steps of {sizes.batch_size} images '
        f'({budget.steps * sizes.batch_size / images:.1f} epochs), '
        f'{plan.clock(budget.cell_seconds)} on one core',
    ]
    for stage, (cells, seconds) in budget.stages.items():
        lines.append(f'  {stage:7} {cells:4} runs {seconds / 3600:8.2f} core-hours')
    cells = sum(n for n, _ in budget.stages.values())
    hours = sum(s for _, s in budget.stages.values()) / 3600
    lines += [
        f'  {"all":7} {cells:4} runs {hours:8.2f} core-hours: {hours / cores:.1f} hours on {cores} '
        f'core{"s" * (cores > 1)}, and about a quarter more for compiling and scoring',
    ]
    if hours < 0.8 * design.SHARE * args.hours * cores:
        lines.append(
            f'  {args.hours:g} hours are more than these images can use: '
            'more images would help, or --image_size if yours are larger.'
        )
    lines += [
        '',
        'What it could detect:',
        f'  gaps of {design.detectable(budget.seeds, args.sd):.2f} pp, in 80 of 100 such studies: '
        f'{budget.seeds} seeds, {design.COMPARISONS} primary comparisons (alpha '
        f'{design.ALPHA}/{design.COMPARISONS}), if paired gaps',
        f'  vary over seeds with an sd of {args.sd:g} pp, which is an assumption (--sd); the gate '
        'shows yours.',
        f'  An accuracy of 90 % has a standard error of {design.image_error(test):.2f} pp on the '
        f'{test:,} test images (one image is {100 / test:.2f} pp)',
        f'  and {design.image_error(validation):.2f} pp on the {validation:,} validation images. '
        'More seeds do not make these smaller.',
        *_cautions(budget.seeds, validation),
        '',
        'Next (docs/your_images.md explains each step):',
    ]
    work = args.out.removesuffix('.py')
    for part in PARTS:
        lines.append(f'  {_command(args.out, part, work, cores)}')
        report = f'python -m moe_vision.study report --workdir={shlex.quote(f"{work}/{part}")}'
        lines.append(
            f'  {report}' + ('  # go on if its two conditions hold' if part == 'gate' else '')
        )
    return lines


def _cautions(seeds: int, validation: int) -> list[str]:
    lines = []
    if not design.sure(seeds):
        lines.append(
            f'  With {seeds} seeds no comparison is sure as the first of {design.COMPARISONS} '
            '(p >= 0.03 even if all have one sign); more hours give 7.'
        )
    if 2 * design.image_error(validation) > 1:
        lines.append(
            '  The gate asks for 1 pp, which so few validation images do not settle alone: see its '
            'interval, or add images.'
        )
    return lines


def _command(out: str, part: str, work: str, cores: int) -> str:
    """The shell line that runs a part on all cores, one process on each."""
    command = (
        f'python -m moe_vision.study run --study={shlex.quote(f"{out}:{part}")} '
        f'--workdir={shlex.quote(f"{work}/{part}")}'
    )
    if cores == 1:
        return command
    ids: list[int] = list(range(cores))
    if hasattr(os, 'sched_getaffinity') and cores <= len(os.sched_getaffinity(0)):
        ids = sorted(os.sched_getaffinity(0))[:cores]
    pinned = 'taskset -c $core ' if shutil.which('taskset') else ''
    return f'for core in {" ".join(map(str, ids))}; do {pinned}{command} & done; wait'
