"""The repository's root has one home."""

import importlib
import re
from pathlib import Path

import pytest

from moe_vision.common.errors import UserError
from moe_vision.common.paths import ROOT, expanded, in_order, path_name, runs_near


def test_the_root_is_the_folder_of_this_repository():
    assert Path(__file__).resolve().parents[2] == ROOT
    assert (ROOT / 'main.py').exists() and (ROOT / 'moe_vision').is_dir()


def test_no_other_module_counts_its_way_up_to_it():
    counting = re.compile(r'__file__\)?[^\n]*(\.parent|parents\[|dirname)|dirname\([^\n]*__file__')
    found = {
        str(p.relative_to(ROOT))
        for folder in ('moe_vision', 'benchmarks', 'configs')
        for p in (ROOT / folder).rglob('*.py')
        if counting.search(p.read_text())
    }
    found |= {'main.py'} & {'main.py' for _ in counting.findall((ROOT / 'main.py').read_text())}
    assert found == {'moe_vision/common/paths.py'}


def test_the_place_of_an_array_is_its_keys():
    import jax

    tree = {'block_3': {'experts': {'in_kernel': [0.0, 1.0]}}}
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ['block_3/experts/in_kernel/0', 'block_3/experts/in_kernel/1']


@pytest.mark.parametrize(
    'path, whole',
    [
        ('~', '/home/me'),
        ('~/x/~', '/home/me/x/~'),
        ('./~/x', './~/x'),
        ('x~', 'x~'),
        ('', ''),
        ('gs://b/~/x', 'gs://b/~/x'),
    ],
)
def test_the_home_folder_stands_for_a_tilde_at_the_start(path, whole, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert expanded(path) == whole


def test_a_tilde_of_nobody_makes_no_folder():
    with pytest.raises(UserError, match="'~nobody-has-this-name/x' begins with .*'./~nobody"):
        expanded('~nobody-has-this-name/x')


NOBODY = '~nobody-has-this-name/x'


@pytest.mark.parametrize(
    'command, arguments',
    [
        ('main', ['--config=configs/digits_k2.py', f'--workdir={NOBODY}']),
        ('main', ['--mode=eval', f'--workdir={NOBODY}']),
        ('main', [f'--config={NOBODY}', '--workdir=W']),
        ('main', ['--mode=summary', f'--config=configs/workdir.py:{NOBODY}']),
        ('main', ['--config=configs/digits_k2.py', '--workdir=W', f'--config.init_from={NOBODY}']),
        (
            'main',
            ['--config=configs/digits_k2.py', '--workdir=W', f'--config.dataset.data_dir={NOBODY}'],
        ),
        ('moe_vision.study.__main__', ['report', f'--workdir={NOBODY}']),
        ('moe_vision.study.__main__', ['run', '--workdir=W', f'--study={NOBODY}']),
        ('moe_vision.report.__main__', [f'--workdir={NOBODY}']),
        ('moe_vision.predict.__main__', [f'--workdir={NOBODY}', 'x.png']),
        ('moe_vision.predict.__main__', ['--workdir=W', NOBODY]),
        ('moe_vision.pod.__main__', [f'--config={NOBODY}', '--topology=v5e:4x4']),
        ('moe_vision.leverage.__main__', [f'--config={NOBODY}']),
        (
            'moe_vision.leverage.__main__',
            ['--config=configs/digits_k2.py', '--sweep=model.moe.k=1', f'--out={NOBODY}'],
        ),
        ('input_pipeline.prepare', ['--dataset=digits', f'--data_dir={NOBODY}']),
        ('input_pipeline.prepare', ['--dataset=cifar10', f'--source={NOBODY}', '--data_dir=D']),
    ],
)
def test_every_path_that_a_command_takes_knows_the_home_folder(
    command, arguments, tmp_path, monkeypatch, capsys
):
    """And so says that nobody has it, in one line, instead of making a folder of that name."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(command)
    if command == 'main':
        module.FLAGS.unparse_flags()
        arguments = [command, *arguments]
    assert module.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f"'{NOBODY}' begins with the home folder" in said
    assert {p.name for p in tmp_path.iterdir()} == {'configs'}


@pytest.mark.parametrize(
    'files, says',
    [
        ([], 'give the folder of a run that was trained'),
        (['notes.txt'], 'give the folder of a run that was trained'),
        (['a/config.json'], "give the folder of a run, such as '{here}/a'"),
        (['c/config.json', 'a/notes', 'b/config.json'], "'{here}/b' (or 1 more there)"),
        (
            ['preregistration.json', 'rows.jsonl'],
            'it holds a study: see ',
        ),
    ],
)
def test_a_folder_without_a_run_says_where_one_is(tmp_path, files, says):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('')
    assert says.format(here=tmp_path) in runs_near(str(tmp_path))
    assert runs_near(str(tmp_path / 'gone')) == runs_near('gs://bucket/run')


def test_layers_stand_in_the_order_of_their_numbers():
    """In a tree of jax they stand in the order of letters."""
    layers = ['block_1', 'block_3', 'block_3_split_1', 'block_11', 'head']
    assert in_order(sorted(layers)) == layers
    assert in_order(['net/block_10', 'net/block_9']) == ['net/block_9', 'net/block_10']
