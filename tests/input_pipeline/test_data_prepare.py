"""The command line reports errors in one line with exit code 2 and leaves no partial output."""

import os
import shlex
import signal
import subprocess
import sys
import time

import image_fakes
import pytest

import input_pipeline as ip
from input_pipeline import storage
from input_pipeline.metadata import Facts, prepare_command
from input_pipeline.prepare import _Progress, main
from input_pipeline.registry import find
from input_pipeline.shards import Unfinished


def run(*args, **kwargs):
    command = [sys.executable, '-m', 'input_pipeline.prepare', *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_unknown_data_set_by_subprocess(tmp_path):
    done = run('--dataset=tiny_imagnet', f'--data_dir={tmp_path}')
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and "Did you mean 'tiny_imagenet'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'args, says',
    [
        ([], 'required: --dataset'),
        (['digits'], 'required: --dataset'),
        (['--dataset=digits', '--sorce=x'], 'unrecognized arguments: --sorce=x'),
        (['--dataset'], 'expected one argument'),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(capsys, args, says):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert says in error and '--help shows the flags' in error


@pytest.mark.parametrize('name', sorted(set(ip.DATASETS) - {'digits', 'fashion_mnist'}))
def test_without_a_source_it_says_what_it_wants(tmp_path, capsys, name):
    for args in ([], [f'--source={tmp_path}/nowhere'], [f'--source={tmp_path}']):
        assert main([f'--dataset={name}', f'--data_dir={tmp_path}', *args]) == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and find(name).wants in error


def test_a_source_that_is_not_read_is_refused(tmp_path, capsys):
    assert main(['--dataset=digits', f'--data_dir={tmp_path}', f'--source={tmp_path}']) == 2
    assert 'reads no --source' in capsys.readouterr().err


def test_prepare_twice(tmp_path, capsys):
    assert main(['--dataset=digits', f'--data_dir={tmp_path}']) == 0
    first = capsys.readouterr().out
    assert 'train 1,437, test 360, 10 classes' in first
    assert main(['--dataset=digits', f'--data_dir={tmp_path}']) == 0
    assert 'already prepared' in capsys.readouterr().out
    assert main(['--dataset=digits', f'--data_dir={tmp_path}', '--overwrite']) == 0
    assert capsys.readouterr().out == first
    assert sorted(p.name for p in (tmp_path / 'digits').iterdir()) == ['.lock', '1.0.0']


def test_failure_while_overwriting_keeps_what_was_there(tmp_path, monkeypatch):
    builder = find('image_fakes:Numbered')
    path = storage.write(builder, tmp_path, str(tmp_path))
    before = sorted((p.name, p.read_bytes()) for p in path.iterdir())

    class Stop(ip.types.Report):
        def images(self, split, more):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write(builder, tmp_path, str(tmp_path), report=Stop(), overwrite=True)
    assert sorted((p.name, p.read_bytes()) for p in path.iterdir()) == before
    assert sorted(p.name for p in path.parent.iterdir()) == ['.lock', '1.0.0']


SLOW = """
import time
from image_fakes import Numbered
from input_pipeline import Contents
class Slow(Numbered):
    'Never ends.'
    name = 'slow'
    def open(self, source):
        def shard():
            for example in Numbered.open(self, source).splits['train'][0]():
                yield example
                print('one', flush=True)
                for _ in range(600):  # short, because a signal may wait for one to end
                    time.sleep(0.1)
        return Contents(('a', 'b', 'c'), {'train': [shard]})
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_can_be_run_again(tmp_path, number):
    (tmp_path / 'slow_set.py').write_text(SLOW)
    root = os.path.dirname(os.path.dirname(ip.__file__))
    paths = [str(tmp_path), os.path.dirname(image_fakes.__file__), root]
    env = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
    code = (
        'import signal, sys\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # ignored in background
        'from input_pipeline import prepare\n'
        f'sys.exit(prepare.main(["--dataset=slow_set:Slow", "--data_dir={tmp_path}/d"]))'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    folder, start = tmp_path / 'd/slow', time.monotonic()
    while not list(folder.glob('unfinished_*/*array_record*')):
        assert time.monotonic() - start < 30 and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert not (folder / '1.0.0').exists()
    leftovers = [p.name for p in folder.iterdir() if p.name != '.lock']
    assert bool(leftovers) == (number == signal.SIGKILL)

    builder = find('image_fakes:Numbered')
    builder = type('Again', (type(builder),), {'name': 'slow', '__doc__': 'Same set.'})()
    storage.write(builder, tmp_path, f'{tmp_path}/d')
    assert sorted(p.name for p in folder.iterdir()) == ['.lock', '1.0.0']


def test_progress_counts_the_images_of_a_split_and_the_share_of_all(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    progress = _Progress({'train': 300, 'test': 100})
    now[0] = 10.0
    progress.images('train', 100)
    assert capsys.readouterr().err == 'train: 100 images, 10/s, 25.0 % of all, 0:30 left\n'
    now[0] = 40.0
    progress.images('test', 100)
    assert capsys.readouterr().err == 'test: 100 images, 5/s, 50.0 % of all, 0:40 left\n'


def test_a_preparation_that_was_killed_keeps_nothing_of_a_source_that_may_have_changed(
    tmp_path, monkeypatch
):
    class Killed(ip.types.Report):
        def images(self, split, more):
            if split == 'test':
                raise KeyboardInterrupt

    builder, data = find('image_fakes:Unlisted'), str(tmp_path / 'd')
    (tmp_path / 'first').write_text('0')
    monkeypatch.setattr(Unfinished, 'remove', lambda self: None)  # as if it had had no time to
    with pytest.raises(KeyboardInterrupt):
        storage.write(builder, tmp_path, data, report=Killed())
    assert list((tmp_path / 'd/unlisted').glob('unfinished_*/*train.array_record*'))
    (tmp_path / 'first').write_text('-1')
    with pytest.raises(ip.DataError, match="'number -1' of train has label -1; the 5 class names"):
        storage.write(builder, tmp_path, data)


def test_the_command_that_is_told_is_one_that_works(tmp_path):
    source, data = tmp_path / 'my pictures', tmp_path / "what's prepared"
    source.mkdir()
    (source / 'first').write_text('0')
    with pytest.raises(ip.DataError) as error:
        ip.info(image_fakes.config('image_fakes:Unlisted', data))
    told = str(error.value).partition('`')[2].partition('`')[0]
    known = Facts(data, 5, (4, 4, 1), {}, (), prepared={'source': str(source)})
    for command in (
        told.replace('PATH', shlex.quote(str(source))),
        prepare_command(find('image_fakes:Unlisted'), str(data), known),
    ):
        assert main([*shlex.split(command)[3:], '--overwrite']) == 0
    assert ip.info(image_fakes.config('image_fakes:Unlisted', data)).num_classes == 5


def test_a_path_that_cannot_be_used_is_one_line(tmp_path, capsys):
    for flag in ('source', 'data_dir'):
        args = {'dataset': 'image_fakes:Unlisted', 'data_dir': str(tmp_path)} | {flag: 'x' * 300}
        assert main([f'--{name}={value}' for name, value in args.items()]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1 and 'too long' in error
