"""The repository's root has one home."""

import re
from pathlib import Path

import pytest

from moe_vision.common.paths import ROOT, path_name, runs_near


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
