"""The repository's root has one home."""

import re
from pathlib import Path

from moe_vision.common.paths import ROOT, path_name


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
