"""Train, score, probe or describe one run.

    python main.py --config=configs/digits_k2.py --workdir=W
    python main.py --mode=eval --workdir=W --config.eval.split=validation
    python main.py --mode=probe --workdir=W
    python main.py --mode=summary --config=configs/digits_k2.py

A TPU pod connects the processes of a run by itself. Elsewhere, start each process with

    python main.py ... --coordinator=HOST:PORT --processes=N --process=I

SIGTERM saves the run and ends it with exit code 143. The same command continues it.

The command line can set any key of a config and any argument of a method:
`--config.train.epochs=5`, `--config.model.moe.router_args.noise=gaussian`.
"""

import dataclasses
import os
import sys

from absl import app, flags

from moe_vision.common import files
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.common.paths import ROOT, expanded
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source, trust
from moe_vision.config.schema import Config
from moe_vision.processes import logs, peers
from moe_vision.processes.exit_code import exit_code
from moe_vision.processes.stop import Stop
from moe_vision.run_folder import abandoned
from moe_vision.training import continuing

MODES = ('train', 'eval', 'probe', 'summary')
FLAGS = flags.FLAGS

flags.DEFINE_string(
    'config', None, "A config file. Only train requires it; other modes take the run's."
)
flags.DEFINE_string('workdir', None, 'Folder of the run: train writes it, eval and probe read it.')
flags.DEFINE_string('mode', 'train', 'train, eval, probe or summary.')
flags.DEFINE_string('profile_steps', None, 'FIRST,LAST: write a profile of these training steps.')
flags.DEFINE_string('trust', '', "Modules of your own that a run's config.json may import.")
flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0; the port must be free.')
flags.DEFINE_integer('processes', None, 'How many processes the run has.')
flags.DEFINE_integer('process', None, 'The number of this process, from 0.')


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line."""

    mode: str
    config: Config
    config_file: str  # where the config came from
    workdir: str  # '' for a summary without one
    profile_steps: tuple[int, int] | None
    processes: peers.Given | None


def main(argv: list[str]) -> int:
    """Checks the command line and does what it asks. Returns the exit code."""
    return exit_code(lambda: run(argv))


def run(argv: list[str]) -> None:
    """Does what `main` does, but raises errors."""
    request = _parse(argv)
    config, workdir = request.config, request.workdir
    logs.to_stderr()
    info = rules.check_data(
        config,
        reads=request.mode != 'summary',
        split=config.eval.split if request.mode in ('eval', 'probe') else '',
    )
    if request.mode == 'summary':
        rules.check_to_train(config, info)
        from moe_vision.training import preflight

        preflight.summary(config, info)
        return
    if request.mode == 'train':
        continuing.check(workdir, config, info)
    with rules.workdir(workdir, create=request.mode == 'train'):
        peers.start(request.processes)
        abandoned.hide()
        from moe_vision.training import loop

        if request.mode == 'train':
            with Stop() as stop:
                loop.train(
                    config,
                    workdir=workdir,
                    config_file=request.config_file,
                    profile_steps=request.profile_steps,
                    stop=stop,
                )
        elif request.mode == 'eval':
            loop.evaluate(config, workdir=workdir)
        else:
            from moe_vision.training import linear_probe

            linear_probe.probe(config, workdir)
        peers.done()


def _parse(argv: list[str]) -> Request:
    """Reads and checks the command line and the config it names.

    Raises:
      UserError, DataError: the first mistake, in one line.
    """
    common, opened, others = source.take_overrides(argv[1:])
    try:
        extra = FLAGS([argv[0], *others])[1:]
    except flags.UnrecognizedFlagError as e:
        known = [
            '--config',
            '--workdir',
            '--mode',
            '--profile_steps',
            '--trust',
            '--coordinator',
            '--processes',
            '--process',
        ]
        key = source.nearest_key(e.flagname)
        is_key = '.' in e.flagname or f".{e.flagname}'" in key
        hint = (not is_key and nearest(f'--{e.flagname}', known)) or key
        raise UserError(
            f"unknown flag '--{e.flagname}'.{hint} Allowed: {', '.join(known)}, --config.KEY."
        ) from e
    except (flags.Error, ValueError) as e:
        raise UserError(f'{e}.') from e
    if extra:
        raise UserError(f"unexpected argument '{extra[0]}'; flags are written --name=value.")
    mode, workdir, file = FLAGS.mode, expanded(FLAGS.workdir or ''), FLAGS.config
    if mode not in MODES:
        raise unknown('--mode', mode, MODES)
    if mode != 'summary' and not workdir:
        raise UserError('--workdir is missing; give the folder of the run, --workdir=FOLDER.')
    if not file and (mode == 'train' or not workdir):
        raise UserError('--config is missing; give a file, such as --config=configs/digits_k2.py.')
    trust.allow(FLAGS.trust)
    config = config_lib.check(
        source.load(file or f'{ROOT}/configs/workdir.py:{workdir}', common, opened)
    )
    profile_steps = _profile_steps()
    processes = peers.check(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if processes and mode == 'summary':
        raise UserError("--coordinator is set but is not read: --mode is 'summary'.")
    if mode == 'train':
        rules.check_init(config)
    if mode != 'summary':
        files.check_bucket(workdir)
    return Request(
        mode,
        config,
        file or os.path.join(workdir, 'config.json'),
        workdir,
        profile_steps,
        processes,
    )


def _profile_steps() -> tuple[int, int] | None:
    """The checked value of --profile_steps."""
    steps = FLAGS.profile_steps
    if steps is None:
        return None
    first, _, last = steps.partition(',')
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(
            f"--profile_steps is '{steps}'; write the first and the last step, such as 10,20."
        )
    if FLAGS.mode != 'train':
        raise UserError(f"--profile_steps is set but is not read: --mode is '{FLAGS.mode}'.")
    return int(first), int(last)


if __name__ == '__main__':
    app.define_help_flags()
    sys.exit(main(sys.argv))
