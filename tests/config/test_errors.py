"""`main.py` as a user meets it: one line, exit code 2, under three seconds, without jax.

Importing jax, flax, grain or tfds would take the seconds that a misspelt key does not deserve. Here
they are shadowed by modules that raise, so whatever imports one ends in a traceback and fails.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_fakes import encoded, picture, rewrite

from configs import digits_k2
from input_pipeline.prepare import prepare
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import rules

ROOT = Path(__file__).parents[2]
CONFIG = '--config=configs/digits_k2.py'
OF_TWO = ['--processes=2', '--process=0']


@pytest.fixture(scope='session')
def shadowed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the slow imports raise."""
    folder = tmp_path_factory.mktemp('shadow')
    for name in ('jax', 'jaxlib', 'flax', 'grain', 'tensorflow_datasets', 'orbax'):
        (folder / f'{name}.py').write_text(f"raise RuntimeError('{name} was imported')\n")
    return {'PYTHONPATH': str(folder), 'PATH': '', 'HOME': str(folder)}


SERVER = """
import json, os, signal, sys, tempfile, traceback
sys.path.insert(0, {root!r})
import main
for line in sys.stdin:
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        child = os.fork()
        if not child:
            signal.alarm(60)
            code = 1
            try:
                os.chdir(json.loads(line)[0])
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                code = main.main(['main.py', *json.loads(line)[1:]])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        print(json.dumps([code, out.read(), err.read()]), flush=True)
"""


@pytest.fixture(scope='module')
def main(shadowed):
    """Calls `main.py` in forks of a process that has imported it, which saves most of the time."""
    with subprocess.Popen(
        [sys.executable, '-c', SERVER.format(root=str(ROOT))],
        env=shadowed,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def call(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
            server.stdin.write(json.dumps([str(cwd), *args]) + '\n')
            server.stdin.flush()
            return subprocess.CompletedProcess(args, *json.loads(server.stdout.readline()))

        yield call
        server.stdin.close()


def one_line(done: subprocess.CompletedProcess) -> str:
    """The one line of a mistake."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
    return done.stderr


def refused(shadowed, *args: str, cwd: Path = ROOT) -> str:
    """The one line that `main.py` answers in a process of its own, and soon."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / 'main.py'), *args],
        cwd=cwd,
        env=shadowed,
        capture_output=True,
        text=True,
        timeout=60,
    )
    took = time.monotonic() - start
    assert took < 3, f'{took:.1f} s'
    return one_line(done)


@pytest.mark.parametrize(
    'args, parts',
    [
        (['--config.model.moe.rooter=top_k'], ['--config.model.moe.rooter', 'model.moe.router']),
        (['--config.trian.epochs=3'], ['--config.trian.epochs', "'--config.train.epochs'"]),
        (['--config.train=3'], ['--config.train', '--config.train.epochs']),
        (['--config.train.epochs'], ['--config.train.epochs', 'no value']),
        (['--train.epochs=3'], ["'--train.epochs'", "'--config.train.epochs'"]),
        (['--wrokdir=W'], ["'--wrokdir'", "'--workdir'", '--mode']),
        (['--mode=evla'], ["'evla'", "'eval'", 'summary']),
        (['--mode'], ['--mode']),
        (['W'], ["'W'", '--name=value']),
        (['--profile_steps=20,10'], ["'20,10'", '10,20']),
        (['--mode=summary', '--profile_steps=1,2'], ['--profile_steps', 'not read', 'summary']),
        (['--coordinator=a:1'], ['--processes and --process missing', '--coordinator=HOST:PORT']),
        (['--coordinator=a', *OF_TWO], ["'a'", 'free port']),
        (['--coordinator=a:70000', *OF_TWO], ["'a:70000'", 'free port']),
        (['--coordinator=a:1', *OF_TWO, '--process=2'], ['--process is 2', '0 to 1']),
        (['--coordinator=a:1', *OF_TWO, '--processes=0'], ['--processes is 0', 'positive']),
        (['--coordinator=a:1', *OF_TWO, '--processes=two'], ['--processes', 'two']),
        (['--mode=summary', '--coordinator=a:1', *OF_TWO], ['--coordinator', 'not read']),
        (['--config.train.skip_nonfinite=-1'], ['train.skip_nonfinite is -1', 'negative']),
        (['--config.model.moe.router=topk'], ["router 'topk'", "'top_k'", 'soft']),
        (['--config.model.moe.router_args.noize=jitter'], ["noize'", "'noise'", 'gate_scale']),
        (['--config.model.moe.router_args.noise=jiter'], ["'jiter'", "'jitter'", 'learned']),
        (['--config.model.name=convv'], ["backbone 'convv'", "'conv'", 'vit']),
        (['--config.model.args.widhts=8,16'], ["widhts'", "'widths'", 'depth']),
        (['--config.model.moe.expert=covn'], ["expert 'covn'", "'conv'"]),
        (['--config.model.moe.losses.lode=1'], ["loss 'lode'", "'load'"]),
        (['--config.dataset.name=digit'], ["data set 'digit'", "'digits'", 'cifar10']),
        (['--config.dataset.augment=pad'], ["augment 'pad'", 'pad_crop_flip']),
        (['--config.train.optimizer=adamv'], ["optimizer 'adamv'", "'adamw'", 'sgd']),
        (['--config.train.optimizer_args.momentum=1'], ["momentum'", 'b1, b2, eps']),
        (['--config.train.transforms.freeze_ruter.step=1'], ["'freeze_ruter'", "'freeze_router'"]),
        (['--config.train.transforms.freeze_router.stop=1'], ["stop'", "'step'", 'fraction']),
        (['--config.train.transforms.freeze_router=3'], ['freeze_router is 3', 'at, fraction']),
        (
            ['--config.train.transforms.freeze_router.step=9'],
            ['train.transforms.freeze_router.step', 'not read', "at is 'fraction'"],
        ),
        (
            ['--config.train.transforms.freeze_router.fraction=1.5'],
            ['freeze_router.fraction is 1.5', '0 <= fraction < 1'],
        ),
        (
            ["--config.train.transforms={'freeze_experts':{}}"],
            ['freeze_experts.experts', 'missing'],
        ),
        (
            ["--config.train.transforms={'freeze_experts':{'experts':(0,),'layers':'('}}"],
            ["layers is '('", 'not a regular expression'],
        ),
        (['--config.train.transforms=freeze_router'], ['train.transforms', 'a dictionary']),
        (['--config.model.moe.k=9'], ['model.moe.k is 9', '1 to 8']),
        (['--config.mesh.expert=3'], ['num_experts 8', 'mesh.expert 3', '2, 4']),
        (['--config.train.batch_size=100'], ['group_size is 64', '100 images', '25, 50']),
        (['--config.train.micro_batches=5'], ['batch_size 128', 'micro_batches 5', '4, 8']),
        (['--config.model.moe.group_size=48'], ['group_size is 48', '32, 64']),
        (['--config.model.moe.capacity_factor=0'], ['capacity_factor is 0.0', 'positive']),
        (['--config.model.moe.capacity_factor=-1'], ['capacity_factor is -1.0', 'positive']),
        (['--config.model.moe.capacity_factor=nan'], ['capacity_factor is nan', 'a number']),
        (['--config.train.epochs=many'], ["train.epochs is 'many'", 'a number']),
        (['--config.seed=0.5'], ["seed is '0.5'", 'an int']),
        (['--config.dataset.cache=2'], ["dataset.cache is '2'", 'True or False']),
        (['--config.model.args.widths=wide'], ["model.args.widths is 'wide'", 'an int']),
        (['--config.eval.split=valid'], ["'valid'", "'validation'", 'test']),
        (
            ['--config.model.moe.placement=none', '--config.model.moe.k=1'],
            ['model.moe.k', 'not read'],
        ),
        (['--config.init_from={tmp}/gone'], ["/gone'", 'no such folder']),
        (['--config.init_from=configs'], ["'configs', which holds no checkpoints", 'of a run']),
        (['--epochs=3'], ["'--epochs'", "Did you mean '--config.train.epochs'?"]),
    ],
)
def test_a_mistake_in_the_command_line(main, tmp_path, args, parts):
    args = [a.replace('{tmp}', str(tmp_path)) for a in args]
    line = one_line(main(CONFIG, f'--workdir={tmp_path}', *args))
    for part in parts:
        assert part in line, line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'args, parts',
    [
        ([CONFIG], ['--workdir is missing']),
        (['--workdir=W'], ['--config is missing', '--config=configs/']),
        (['--mode=summary'], ['--config is missing']),
        (['--config=configs/digit_k2.py', '--workdir=W'], ["'configs/digits_k2.py'"]),
        (['--config=digits_k2.py', '--workdir=W'], ["'configs/digits_k2.py'"]),
        (['--config=configs', '--workdir=W'], ["'configs' does not exist"]),
        (['--config=configs/digits_k2.py:k1', '--workdir=W'], ['takes no argument', "':k1'"]),
        (
            ['--config=configs/imagenet_ablation.py', '--workdir=W'],
            ['no arm is named', 'k1_same_c'],
        ),
        (['--config=configs/imagenet_ablation.py:k1_same', '--workdir=W'], ["'k1_same_c'"]),
        (['--config=LICENCE.txt', '--workdir=W'], ["'LICENCE.txt'"]),
        (
            ['--mode=eval', '--workdir={tmp}/gone'],
            ["/gone'", 'no config.json', 'give the folder of a run'],
        ),
        (['--mode=eval', CONFIG, '--workdir={tmp}/gone'], ["/gone'", 'does not exist']),
    ],
)
def test_what_is_missing_is_named(main, tmp_path, args, parts):
    line = one_line(main(*[a.replace('{tmp}', str(tmp_path)) for a in args]))
    for part in parts:
        assert part in line, line
    assert not (ROOT / 'W').exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'text, parts',
    [
        ('x = 1\n', ['no get_config()']),
        ('def get_confg():\n  return 1\n', ['no get_config()', "'get_confg'"]),
        ('def get_config(:\n', ['line 1', 'SyntaxError']),
        ('def get_config():\n  return 1 / 0\n', ['line 2', 'ZeroDivisionError']),
        ('def get_config():\n  raise ValueError("two\\nlines")\n', ['ValueError: two lines']),
        ('def get_config(name):\n  return name\n', ['needs an argument', "mine.py:ARGUMENT'"]),
        ('def get_config():\n  pass\n', ['NoneType', 'ConfigDict']),
        (
            'from configs import base\ndef get_config():\n  c = base.get_config()\n'
            '  c.train.epoch = 3\n  return c\n',
            ["'train.epoch'", "'epochs'"],
        ),
        (
            'from configs import base\ndef get_config():\n  c = base.get_config()\n'
            '  del c.train.epochs\n  return c\n',
            ["'train.epochs' is missing"],
        ),
        (
            'from configs import base\ndef get_config():\n  c = base.get_config()\n'
            '  c.train.epochs = "3"\n  return c\n',
            ['line 4', "'epochs'", "'float'"],
        ),
    ],
)
def test_a_config_file_that_fails(main, tmp_path, text, parts):
    (tmp_path / 'mine.py').write_text(text)
    line = one_line(main(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/w'))
    for part in parts:
        assert part in line, line
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    ('bad', 'flags', 'parts'),
    [
        ('test/b/1.png', [], ['of the 4 images of test', '(test/b/1.png)', '--overwrite']),
        ('val/b/1.png', [], ['of the 4 images of validation', '(val/b/1.png)']),
        (
            '',
            ['--config.dataset.cache=True'],
            ['cache is set', 'GB decoded', 'dataset.cache=False'],
        ),
        ('', ['--config.dataset.cache=True', '--mode=summary'], ['cache is set', 'GB decoded']),
        (
            'val/',
            ['--config.dataset.validation_fraction=0.001'],
            ['leaves no image for validation'],
        ),
        ('val/', ['--config.dataset.validation_fraction=0.99'], ['leaves no image for train']),
    ],
)
def test_images_that_would_end_a_run_late(main, tmp_path, bad, flags, parts):
    """No folder of the run is made."""
    for split, count in {'train': 32, 'val': 4, 'test': 4}.items():
        for i in range(count):
            name = f'{split}/{"ab"[i % 2]}/{i}.png'
            data = b'no image' if name == bad else encoded(picture(i, 8, 8), 'PNG')
            if not (bad.endswith('/') and name.startswith(bad)):
                rewrite(tmp_path / 'in' / name, data)
    prepare('image_folder', str(tmp_path), str(tmp_path / 'in'))
    noted = tmp_path / 'image_folder/1.0.0/prepared.json'
    noted.write_text(noted.read_text().replace('"train": 2048', '"train": 2048000000000000'))
    flags = ['--config.dataset.name=image_folder', f'--config.dataset.data_dir={tmp_path}', *flags]
    flags += ['--config.dataset.image_size=8', '--config.train.batch_size=16']
    flags += ['--config.model.moe.group_size=8']
    if not any('cache' in flag for flag in flags):
        flags += ['--config.dataset.cache=False']
    line = one_line(main(CONFIG, f'--workdir={tmp_path}/w', *flags))
    for part in parts:
        assert part in line, line
    assert not (tmp_path / 'w').exists()


def test_a_workdir_that_cannot_be_written(shadowed, tmp_path):
    (tmp_path / 'file').write_text('')
    line = refused(shadowed, CONFIG, f'--workdir={tmp_path}/file/w')
    assert f'{tmp_path}/file/w' in line and '--workdir' in line


def test_main_works_from_another_folder(shadowed, tmp_path):
    line = refused(
        shadowed,
        f'--config={ROOT}/configs/digits_k2.py',
        '--workdir=w',
        '--config.model.moe.k=9',
        cwd=tmp_path,
    )
    assert 'model.moe.k is 9' in line


HANDED = """
import sys, types
sys.path.insert(0, {root!r})
import main
from absl import logging
from moe_vision.common.errors import UserError
from input_pipeline import DataError

def called(name, effect=None):
    def f(config, info=None, **kwargs):
        logging.info('hello')
        print(name, config.train.epochs, config.eval.batch_size, kwargs)
        if effect is not None:
            raise effect
    return f

train = types.ModuleType('moe_vision.training.loop')
train.train, train.evaluate = called('train', {effect}), called('evaluate')
preflight = types.ModuleType('moe_vision.training.preflight')
preflight.summary = called('summary')
sys.modules.update({{m.__name__: m for m in (train, preflight)}})
sys.exit(main.main(sys.argv))
"""


def handed(shadowed, *args: str, effect: str = 'None') -> subprocess.CompletedProcess:
    """`main` with the trainer replaced by one that prints what it was given."""
    code = HANDED.format(root=str(ROOT), effect=effect)
    return subprocess.run(
        [sys.executable, '-c', code, *args],
        cwd=ROOT,
        env=shadowed,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_train_is_handed_the_config_and_the_profile(shadowed, tmp_path):
    done = handed(
        shadowed,
        CONFIG,
        f'--workdir={tmp_path}/a/b',
        '--config.train.epochs=7',
        '--profile_steps=3,5',
    )
    assert done.returncode == 0
    assert done.stdout.startswith(
        f"train 7.0 256 {{'workdir': '{tmp_path}/a/b', 'config_file': 'configs/digits_k2.py', "
        "'profile_steps': (3, 5), 'stop': <moe_vision.processes.stop.Stop "
    )
    assert done.stderr.count('\n') == 1 and done.stderr.endswith(' I hello\n')
    assert (tmp_path / 'a/b').is_dir()


def test_a_workdir_in_the_home_folder(shadowed):
    done = handed(shadowed, CONFIG, '--workdir=~/in/home')
    assert f"'workdir': '{shadowed['HOME']}/in/home'" in done.stdout, done.stderr
    assert (Path(shadowed['HOME']) / 'in' / 'home').is_dir() and not (ROOT / '~').exists()


def test_another_config_in_the_folder_of_a_run_is_told_at_once(shadowed, tmp_path):
    told = {'config': config_lib.to_dict(config_lib.check(digits_k2.get_config()))}
    (tmp_path / 'config.json').write_text(json.dumps(told))
    (tmp_path / 'result.json').write_text('{}')
    line = refused(shadowed, CONFIG, f'--workdir={tmp_path}', '--config.seed=1')
    assert 'seed 0 -> 1' in line and 'another --workdir' in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'result.json']
    assert json.loads((tmp_path / 'config.json').read_text()) == told


def test_evaluate_takes_the_config_of_the_run(shadowed, tmp_path):
    c = digits_k2.get_config()
    c.train.epochs = 11.0
    told = {'config': config_lib.to_dict(config_lib.check(c))}
    (tmp_path / 'config.json').write_text(json.dumps(told))
    done = handed(shadowed, '--mode=eval', f'--workdir={tmp_path}', '--config.eval.batch_size=1')
    assert done.stdout == f"evaluate 11.0 1 {{'workdir': '{tmp_path}'}}\n", done.stderr
    done = handed(shadowed, '--mode=summary', f'--workdir={tmp_path}')
    assert done.stdout == 'summary 11.0 256 {}\n', done.stderr


@pytest.mark.parametrize(
    'effect, code, line',
    [
        ("UserError('no')", 2, 'error: no'),
        ("DataError('two\\nlines')", 2, 'error: two lines'),
        ('KeyboardInterrupt()', 130, 'interrupted; start again with the same command to continue.'),
    ],
)
def test_what_goes_wrong_after_start_is_one_line_too(shadowed, tmp_path, effect, code, line):
    done = handed(shadowed, CONFIG, f'--workdir={tmp_path}', effect=effect)
    assert done.returncode == code
    assert done.stderr.splitlines()[1:] == [line]


def test_missing_data_are_told_before_jax_is_imported(shadowed, tmp_path):
    done = handed(
        shadowed,
        '--config=configs/imagenet_k2.py',
        f'--workdir={tmp_path}/w',
        f'--config.dataset.data_dir={tmp_path}',
    )
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1
    for part in (
        f'{tmp_path}/imagenet2012',
        'input_pipeline.prepare --dataset=imagenet2012',
        'configs/digits_k2.py works now',
    ):
        assert part in done.stderr


@pytest.mark.parametrize(
    'key, value, told',
    [
        ('model.moe.num_experts', 10**18, 'must be at most 100,000'),
        ('model.moe.num_experts', 10**400, 'an int of 64 bits'),
        ('eval.batch_size', 10**15, 'must be at most 100,000'),
        ('dataset.image_size', 10**9, 'must be at most 10,000'),
        ('model.args.depth', 10**9, 'must be at most 1000'),
        ('train.epochs', 10**400, 'larger than any float'),
        ('train.epochs', 1e300, 'must be at most 3.4e+38'),
        ('seed', 2**32, 'must be at most 4,294,967,295'),
        ('train.steps', 2**31, 'must be at most 2,147,483,647'),
    ],
)
def test_a_number_in_a_damaged_config_that_would_take_all_memory_or_time(
    key, value, told, shadowed, tmp_path
):
    record = {'config': json.loads(json.dumps(digits_k2.get_config().to_dict()))}
    *parents, last = key.split('.')
    holder = record['config']
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    (tmp_path / 'config.json').write_text(json.dumps(record))
    line = refused(shadowed, '--mode=eval', f'--workdir={tmp_path}')
    assert told in line and len(line) < 500


@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('wrote', [True, False])
def test_what_is_refused_leaves_no_empty_folder(tmp_path, before, wrote):
    folder = tmp_path / 'w'
    if before:
        folder.mkdir()
    with pytest.raises(UserError), rules.workdir(str(folder), create=True):
        assert folder.is_dir()
        if wrote:
            (folder / 'config.json').write_text('{}')
        raise UserError('init_from: another network.')
    assert folder.exists() == (before or wrote)


def test_a_bug_leaves_the_folder_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), rules.workdir(str(tmp_path / 'w'), create=True):
        raise ZeroDivisionError
    assert (tmp_path / 'w').exists()
