"""Train, evaluate or describe one run.

    python main.py --config=configs/digits_k2.py --workdir=W
    python main.py --mode=eval --workdir=W --config.eval.split=validation
    python main.py --mode=summary --config=configs/digits_k2.py

Over several processes, where no TPU pod says so by itself, each of them:

    python main.py ... --coordinator=HOST:PORT --processes=N --process=I

SIGTERM saves and ends a training with exit code 143; the same command goes on.

Any key of a config can be set, those of a method's arguments too: `--config.train.epochs=5`,
`--config.model.moe.router_args.noise=gaussian`.
"""

import os
import sys

from absl import app, flags

from moe_vision.common import files
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.config import check as config_lib
from moe_vision.config import rules, source, trust
from moe_vision.config.schema import Config
from moe_vision.processes import logs, peers
from moe_vision.processes.exit_code import exit_code
from moe_vision.processes.stop import Stop

HERE = os.path.dirname(os.path.abspath(__file__))
MODES = ('train', 'eval', 'summary')
FLAGS = flags.FLAGS

flags.DEFINE_string('config', None, "A file of configs/; eval and summary: by default the run's.")
flags.DEFINE_string('workdir', None, 'Folder of the run: written by train, read by eval.')
flags.DEFINE_string('mode', 'train', 'train, eval or summary.')
flags.DEFINE_string('profile_steps', None, 'FIRST,LAST: write a profile of these training steps.')
flags.DEFINE_string('trust', '', "Modules of your own that a run's config.json names.")
flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, the port free.')
flags.DEFINE_integer('processes', None, 'How many processes the run has.')
flags.DEFINE_integer('process', None, 'Which of them this is, from 0.')


def main(argv: list[str]) -> int:
    """Checks the command line and hands over. Returns the exit code."""
    return exit_code(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    try:
        _carry_out(*_parse(argv))
    except ImportError as e:
        if not files.in_bucket(FLAGS.workdir):
            raise
        raise UserError(f"workdir '{FLAGS.workdir}' needs gcsfs and google-cloud-storage: {e}"
                        ) from e


def _carry_out(config: Config, file: str, profile_steps: tuple[int, int] | None,
               given: peers.Given | None) -> None:
    logs.to_stderr()
    rules.check_data(config, reads=FLAGS.mode != 'summary')
    if FLAGS.mode == 'summary':
        from moe_vision.training import preflight
        preflight.summary(config)
        return
    peers.start(given)
    from moe_vision.training import loop
    if FLAGS.mode == 'train':
        with Stop() as stop:
            loop.train(config, workdir=FLAGS.workdir, config_file=file,
                        profile_steps=profile_steps, stop=stop)
    else:
        loop.evaluate(config, workdir=FLAGS.workdir)
    peers.done()


def _parse(argv: list[str],
           ) -> tuple[Config, str, tuple[int, int] | None, peers.Given | None]:
    """Sets FLAGS; returns the checked config, the file it came from, the steps to profile, and who
    takes part."""
    common, opened, others = source.take_overrides(argv[1:])
    try:
        extra = FLAGS([argv[0], *others])[1:]
    except flags.UnrecognizedFlagError as e:
        known = ['--config', '--workdir', '--mode', '--profile_steps', '--trust', '--coordinator',
                 '--processes', '--process']
        key = '.' in e.flagname
        near = ((not key and nearest(f'--{e.flagname}', known))
                or source.nearest_key(e.flagname))
        raise UserError(f"unknown flag '--{e.flagname}'.{near} Allowed: {', '.join(known)}, "
                        '--config.KEY.') from e
    except (flags.Error, ValueError) as e:
        raise UserError(f'{e}.') from e
    if extra:
        raise UserError(f"unexpected argument '{extra[0]}'; flags are written --name=value.")
    mode, workdir, file = FLAGS.mode, FLAGS.workdir, FLAGS.config
    if mode not in MODES:
        raise unknown('--mode', mode, MODES)
    if mode != 'summary' and not workdir:
        raise UserError('--workdir is missing; give the folder of the run, --workdir=FOLDER.')
    if not file and (mode == 'train' or not workdir):
        raise UserError('--config is missing; give a file, such as --config=configs/digits_k2.py.')
    trust.allow(FLAGS.trust)
    config = source.load(file or f'{HERE}/configs/workdir.py:{workdir}', common, opened)
    checked, profile_steps = config_lib.check(config), _profile_steps()
    given = peers.check(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if given and mode == 'summary':
        raise UserError("--coordinator is set but is not read: --mode is 'summary'.")
    if mode == 'train':
        rules.check_init(checked)
    if mode != 'summary':
        rules.check_workdir(workdir, create=mode == 'train')
    return checked, file or os.path.join(workdir, 'config.json'), profile_steps, given


def _profile_steps() -> tuple[int, int] | None:
    given = FLAGS.profile_steps
    if given is None:
        return None
    first, _, last = given.partition(',')
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f"--profile_steps is '{given}'; write the first and the last step, such as "
                        '10,20.')
    if FLAGS.mode != 'train':
        raise UserError(f"--profile_steps is set but is not read: --mode is '{FLAGS.mode}'.")
    return int(first), int(last)


if __name__ == '__main__':
    app.define_help_flags()
    sys.exit(main(sys.argv))
