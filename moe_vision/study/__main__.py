"""Runs, times and reports a study.

    python -m moe_vision.study run --study=configs/studies/NAME.py:SET --workdir=W
    python -m moe_vision.study tune --study=configs/studies/NAME.py:SET --workdir=W  # first stage
    python -m moe_vision.study time --study=configs/studies/NAME.py:SET --workdir=W
    python -m moe_vision.study report --workdir=W   # W may also hold several studies
    python -m moe_vision.study pack --workdir=W     # merge rows, and timings, into one file
    python -m moe_vision.study register --study=configs/studies/NAME.py:SET --workdir=W
    python -m moe_vision.study new --help           # writes a study file for images of your own

To train over several processes as one mesh, start each of them with its number (on a TPU pod, run
the command on every host without these flags):

    python -m moe_vision.study run ... --coordinator=HOST:PORT --processes=N --process=I

Keys that do not change results can be set for all arms: `--config.dataset.data_dir=D`,
`--config.dataset.workers=2`, `--config.checkpoint.KEY`, `--config.log.KEY`.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

import input_pipeline
from input_pipeline import DataError
from moe_vision.common import compile_cache
from moe_vision.common.command_line import printable
from moe_vision.common.errors import UserError, unknown
from moe_vision.common.paths import expanded
from moe_vision.config import rules
from moe_vision.config.command_line import OverridesParser
from moe_vision.processes import logs, peers
from moe_vision.processes.exit_code import exit_code
from moe_vision.processes.stop import Stop
from moe_vision.run_folder import abandoned
from moe_vision.study import lent, registration, stopwatch, tuning
from moe_vision.study.load import Loaded, load, matching
from moe_vision.study.run import claims, pack, plan, runner

if TYPE_CHECKING:
    from moe_vision.study.analysis.analyse import Analysis

COMMANDS = ('run', 'tune', 'report', 'pack', 'register', 'time', 'new')
_TRAIN = ('run', 'tune')


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if arguments[:1] == ['new']:
        from moe_vision.study import new

        return exit_code(lambda: new.main(arguments[1:]))
    return exit_code(lambda: _carry_out(*_parse(arguments)))


def _carry_out(args: argparse.Namespace, overrides: list[str]) -> None:
    if args.command == 'report':
        _overview(args.workdir, {f: _report(f) for f in registration.folders(args.workdir)})
        return
    if args.command == 'pack':
        for folder in registration.folders(args.workdir):
            print('\n'.join(pack.pack(folder)))
        return
    processes = peers.check(args.coordinator, args.processes, args.process)
    loaded = load(args.study, overrides)
    if args.command == 'tune' and loaded.study.tune is None:
        raise UserError(f"study '{loaded.study.name}' has no `tune`, so there is nothing to tune.")
    if args.list or args.dry_run:
        _show(loaded, args)
        return
    if args.command in _TRAIN:
        _check_arms(loaded, args.only)
    else:
        loaded = tuning.tuned(loaded, args.workdir)
    with rules.workdir(args.workdir, create=True):
        if args.command == 'register':
            digest = registration.register(loaded, args.workdir)[1]
            print(f'{args.workdir} holds pre-registration {digest[:16]}')
        elif args.command == 'time':
            _time(loaded, args.workdir)
        else:
            _run(loaded, args, processes)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = OverridesParser('moe_vision.study', __doc__)
    parser.add_argument('command', help=', '.join(COMMANDS))
    parser.add_argument(
        '--study',
        default='',
        metavar='FILE',
        help='a study file, such as configs/studies/top_k.py:digits',
    )
    parser.add_argument(
        '--workdir', type=expanded, default='', metavar='W', help='folder of the study'
    )
    parser.add_argument(
        '--only', default='', metavar='ARMS', help='run: only these arms, such as k1,soft_*'
    )
    parser.add_argument('--list', action='store_true', help='run: print the state of each cell')
    parser.add_argument(
        '--dry_run', action='store_true', help='run: print what is left to do, and what it costs'
    )
    parser.add_argument(
        '--keep_runs', action='store_true', help='run: keep the checkpoints of finished cells'
    )
    parser.add_argument(
        '--coordinator', metavar='HOST:PORT', help='run: host of process 0, and a free port there'
    )
    parser.add_argument(
        '--processes', type=int, metavar='N', help='run: how many processes train as one mesh'
    )
    parser.add_argument(
        '--process', type=int, metavar='I', help='run: the number of this process, from 0'
    )
    args, common, opened = parser.parse_with_overrides(arguments)
    common += [f'--config.{k}={v}' for k, v in opened.items()]  # `load` refuses these
    if args.command not in COMMANDS:
        raise unknown('command', args.command, COMMANDS)
    if args.command == 'new':
        raise UserError('new stands before its flags: python -m moe_vision.study new --out=...')
    if not args.workdir:
        raise UserError('--workdir is missing; give the folder of the study, --workdir=FOLDER.')
    if '://' in args.workdir:
        raise UserError(
            f"--workdir is '{args.workdir}'; a study needs a folder on a file system, "
            'because its processes claim cells there. Copy the rows to a bucket later.'
        )
    if args.command in ('report', 'pack'):
        if args.study or common:
            raise UserError(
                f'{args.command} reads --workdir alone; leave out --study and --config.*.'
            )
    elif not args.study:
        raise UserError(
            '--study is missing; give a file, such as --study=configs/studies/top_k.py:digits.'
        )
    for flag in ('only', 'list', 'dry_run', 'keep_runs'):
        allowed = _TRAIN if flag == 'keep_runs' else ('run',)
        if args.command not in allowed and getattr(args, flag):
            raise UserError(f'--{flag} is set but is not read: the command is {args.command}.')
    trains = args.command in _TRAIN and not (args.list or args.dry_run)
    for flag in ('coordinator', 'processes', 'process'):
        if not trains and getattr(args, flag) is not None:
            raise UserError(f'--{flag} is set but is not read: nothing is trained.')
    return args, common


def _check_arms(loaded: Loaded, only: str) -> None:
    """Raises UserError if an arm that is to run could not begin, or could not be scored."""
    for name in matching(loaded.configs, only):
        try:
            rules.check_init(loaded.configs[name])
            rules.check_data(loaded.configs[name], reads=True)
        except (UserError, DataError) as e:
            raise UserError(f"arm '{name}': {e}") from e


def _run(loaded: Loaded, args: argparse.Namespace, processes: peers.Given | None) -> None:
    flags.FLAGS(['study'])  # worker processes of the input pipeline need parsed flags
    logs.to_stderr()
    abandoned.hide()
    peers.start(processes)
    _check_own_methods(loaded, args.only)
    for line in lent.absent(args.workdir, {'reads': loaded.study.reads}):
        print(f'note: {line}', file=sys.stderr)
    with Stop() as stop:
        if loaded.study.tune and not registration.exists(args.workdir):
            stage, where = tuning.stage(loaded), tuning.folder(args.workdir)
            runner.run(stage, where, keep_runs=args.keep_runs, stop=stop)
        if args.command == 'run':
            loaded = tuning.tuned(loaded, args.workdir)
            runner.run(loaded, args.workdir, args.only, args.keep_runs, stop=stop)
    peers.done()


def _check_own_methods(loaded: Loaded, only: str) -> None:
    """Checks the arms' methods of the user's own before anything is registered or trained."""
    from moe_vision.check import own, transforms

    for name in matching(loaded.configs, only):
        config = loaded.configs[name]
        info = input_pipeline.info(config.dataset)
        try:
            own.check(config.model, info.image_shape, info.num_classes)
            transforms.check(config, info)
        except UserError as e:
            raise UserError(f"arm '{name}': {e}") from e


def _show(loaded: Loaded, args: argparse.Namespace) -> None:
    """Prints what --list and --dry_run ask for; checks the registration and writes nothing."""
    workdir, arms = args.workdir, matching(loaded.configs, args.only)
    try:
        loaded = tuning.tuned(loaded, workdir)
    except tuning.Unfinished:
        loaded, workdir = tuning.stage(loaded), tuning.folder(workdir)
        arms = list(loaded.configs)
        print(f'the tuning comes first, in {workdir}:')
    record: dict[str, Any] = registration.record(loaded)
    if os.path.exists(os.path.join(workdir, 'preregistration.json')):
        record, _ = registration.register(loaded, workdir)
    for line in lent.absent(workdir, record):
        print(f'note: {line}', file=sys.stderr)
    states = plan.states(workdir, record, arms, claims.Claims(workdir))
    if args.list:
        print('\n'.join(f'{arm} seed {seed}: {state}' for (arm, seed), state in states.items()))
    if args.dry_run:
        timings = stopwatch.timings(workdir)
        flops = plan.costs({a: loaded.configs[a] for a in arms}, timings)
        print(plan.table(plan.Plan.from_states(flops, states), timings, plan.this_device()))


def _time(loaded: Loaded, workdir: str) -> None:
    study = loaded.study
    if not study.latency_arms:
        raise UserError(f"study '{study.name}' has no latency_arms; name arms there to time them.")
    registration.register(loaded, workdir)
    logs.to_stderr()
    compile_cache.use()
    from moe_vision.study.run import latency

    latencies = latency.measure(
        {a: loaded.configs[a] for a in study.latency_arms}, study.latency_batches
    )
    print(f'wrote {stopwatch.write_latency(workdir, latencies)}')


def _report(workdir: str) -> 'Analysis':
    from moe_vision.study import report

    analysis, problems = _analysis(workdir)
    left_out: list[str] = []
    timings = {
        'cells': stopwatch.timings(workdir, left_out.append),
        'latency': stopwatch.latency(workdir, left_out.append),
    }
    for line in problems + left_out:
        name = analysis.study['name']
        print(f'note: {name}: {printable(" ".join(line.split()))}', file=sys.stderr)
    out = os.path.join(workdir, 'report')
    report.write(analysis, timings, out)
    print(f'wrote {out}/report.md and report.html')
    return analysis


def _overview(workdir: str, known: Mapping[str, 'Analysis']) -> None:
    from moe_vision.study import overview

    def analysis(study: str) -> 'Analysis':
        return known[study] if study in known else _analysis(study)[0]

    if written := overview.write(workdir, analysis):
        print(f'wrote {os.path.dirname(written[0])}/')


def _analysis(workdir: str) -> tuple['Analysis', list[str]]:
    """The analysis of a study, and what is wrong with its rows."""
    from moe_vision.study.analysis import analyse

    record, digest = registration.read(workdir)
    usable_rows, problems = lent.read(workdir, record, digest)
    return analyse.analyse(record, digest, usable_rows, problems), problems


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
