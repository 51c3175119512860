"""DESIGN's directions: who may import whom, and modules that can be read in one sitting."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    p
    for folder in ('moe_vision', 'input_pipeline', 'configs')
    for p in (ROOT / folder).rglob('*.py')
) + [ROOT / 'main.py']
NAMES = [str(p.relative_to(ROOT)) for p in FILES]


def module(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def found_in(text: str, name: str, package: bool = False) -> set[str]:
    """Modules that a source imports, anywhere in it; `from a import b` is a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = name.split('.')
                parts = parts[: len(parts) - node.level + package]
                base = '.'.join([*parts, base]).strip('.')
            found |= {base} | {f'{base}.{alias.name}' for alias in node.names}
    return found


def imported(path: Path) -> set[str]:
    return found_in(path.read_text(), module(path), path.name == '__init__.py')


def touches(names: set[str], *packages: str) -> set[str]:
    return {n for n in names for p in packages if n == p or n.startswith(f'{p}.')}


def under(*packages: str) -> list[Path]:
    return [p for p in FILES if touches({module(p)}, *packages)]


def test_the_reading_of_imports():
    text = 'import a.b\nfrom c import d\ndef f():\n  from . import e\n  from .g import h\n'
    assert found_in(text, 'top.mid.mod') == {
        'a.b',
        'c',
        'c.d',
        'top.mid',
        'top.mid.e',
        'top.mid.g',
        'top.mid.g.h',
    }
    assert found_in('from .x import y', 'top.mid', package=True) == {'top.mid.x', 'top.mid.x.y'}
    assert 'moe_vision.training.step' in imported(ROOT / 'moe_vision' / 'training' / 'loop.py')


MAY_IMPORT = {  # package of moe_vision: the packages below it that it may import
    'common': '',
    'report': 'common',
    'routing': 'common',
    'config': 'common',
    'processes': 'common',
    'layers': 'common config routing',
    'models': 'common config layers',
    'transforms': 'common config',
    'check': 'common config routing layers models transforms',
    'leverage': 'common report config routing layers models check',
    'run_folder': 'common config processes routing models leverage',
    'surgery': 'common config routing layers models leverage run_folder',
    'training': 'common config processes routing layers models transforms check leverage '
    'run_folder surgery report',
    'export': 'common config models run_folder training',
    'predict': 'common config routing layers models leverage run_folder training surgery',
    'in_python': 'common config report predict',
    'pod': 'common config layers leverage training',
    'surgery command': 'common config layers run_folder surgery training',
    'study': 'common config processes layers models check leverage run_folder training report',
}
# What people do with runs: nothing of the package imports it, but for what the front door gives.
ON_TOP = ('export', 'predict', 'pod', 'surgery command', 'study', 'in_python')
COMMANDS = {'surgery': ('__main__', 'folders')}  # modules of a package that stand above training


def package(name: str) -> str:
    """'training' of 'moe_vision.training.step'; '' of what is in no package of moe_vision."""
    parts = name.split('.')
    if parts[0] != 'moe_vision' or len(parts) < 2:
        return ''
    command = len(parts) > 2 and parts[2] in COMMANDS.get(parts[1], ())
    return f'{parts[1]} command' if command else parts[1]


def test_the_floors_have_an_order():
    """Each package stands on top of all that it may import, so no import runs upward."""
    below = {name: set(names.split()) for name, names in MAY_IMPORT.items()}
    while below:
        ground = {name for name, names in below.items() if not names & set(below)}
        assert ground, f'a circle among {sorted(below)}'
        below = {name: names for name, names in below.items() if name not in ground}


@pytest.mark.parametrize('name', NAMES)
def test_imports_run_downward(name):
    path = ROOT / name
    mine = package(module(path))
    if not mine:  # main.py, configs, input_pipeline, the front door
        return
    ours = {package(n) for n in touches(imported(path), 'moe_vision')} - {'', mine}
    assert ours <= set(MAY_IMPORT[mine].split())


def test_every_package_has_its_floor():
    packages = {package(module(p)) for p in FILES} - {''}
    assert packages == set(MAY_IMPORT)
    on_top = [n for n, names in MAY_IMPORT.items() if set(names.split()) & set(ON_TOP)]
    assert on_top == ['in_python']


def test_the_data_layer_and_the_configs_stand_apart():
    for path in under('input_pipeline'):
        assert not touches(imported(path), 'moe_vision'), path
    for path in under('input_pipeline', 'moe_vision'):
        assert not touches(imported(path), 'configs'), path
    for path in under('configs'):
        ours = touches(imported(path), 'moe_vision') - {'moe_vision'}
        allowed = {'moe_vision.study.types', 'moe_vision.study', 'moe_vision.config'}
        assert ours <= touches(ours, *allowed), path


def test_reports_of_studies_read_what_the_analysis_gives():
    allowed = (
        'moe_vision.study.report',
        'moe_vision.study.types',
        'moe_vision.study.analysis',
        'moe_vision.report',
        'moe_vision.common',
    )
    for path in under('moe_vision.study.report'):
        ours = touches(imported(path), 'moe_vision') - {'moe_vision', 'moe_vision.study'}
        assert ours <= touches(ours, *allowed), path


def reached(start: str) -> set[str]:
    """All that importing a module imports: at the top of files, in any depth, parents included."""
    known = {module(p): p for p in FILES}
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        todo += [name.rpartition('.')[0]] if '.' in name else []
        if name in seen:
            continue
        seen.add(name)
        if name in known:
            tree = ast.parse(known[name].read_text())
            top = ast.unparse(
                ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
            )
            todo += found_in(top, name, known[name].name == '__init__.py')
    return seen


@pytest.mark.parametrize(
    'start',
    [
        'moe_vision.config.registry',
        'moe_vision.config.method_args',
        'moe_vision.config.backbone_args',
        'moe_vision.config.schema',
        'moe_vision.config.base_file',
    ],
)
def test_the_tables_of_names_need_neither_jax_nor_configs(start):
    assert not touches(reached(start), 'jax', 'flax', 'ml_collections', 'configs', 'numpy')


@pytest.mark.parametrize(
    'package, foreign',
    [
        ('moe_vision.routing', ('flax', 'optax', 'ml_collections')),
        ('moe_vision.transforms', ('flax', 'optax', 'ml_collections')),
        ('moe_vision.report', ('jax', 'flax', 'optax', 'orbax', 'input_pipeline')),
        ('moe_vision.study.report', ('jax', 'flax', 'optax', 'orbax', 'input_pipeline')),
        ('moe_vision.layers', ('optax', 'orbax', 'ml_collections', 'input_pipeline')),
        ('moe_vision.models', ('optax', 'orbax', 'ml_collections')),
        ('input_pipeline', ('flax', 'tensorflow')),
    ],
)
def test_packages_do_without(package, foreign):
    for path in under(package):
        assert not touches(imported(path), *foreign), path


def test_only_commands_hide_what_libraries_print():
    """It changes logging and hooks of the whole process, which in a notebook are others', too."""
    users = {module(p) for p in FILES if touches(imported(p), 'moe_vision.run_folder.abandoned')}
    commands = ('study', 'surgery', 'export', 'predict')
    assert users == {
        'main',
        'moe_vision.predict.barrier',
        'moe_vision.predict.oracle',
        *(f'moe_vision.{name}.__main__' for name in commands),
    }


def test_configdict_stays_where_it_is_checked():
    users = {module(p) for p in FILES if touches(imported(p), 'ml_collections')}
    users = {u for u in users if not u.startswith(('configs', 'moe_vision.config.examples'))}
    assert users <= {
        'main',
        'moe_vision',
        'moe_vision.config',
        'moe_vision.config.base_file',
        'moe_vision.config.check',
        'moe_vision.config.source',
    }


@pytest.mark.parametrize(
    'start',
    [
        'main',
        'moe_vision.study.__main__',
        'moe_vision.study.new',
        'moe_vision.pod.__main__',
        'moe_vision.surgery.__main__',
        'moe_vision.export.__main__',
        'moe_vision.study.analysis.analyse',
        'moe_vision.study.run.runner',
    ],
)
def test_what_answers_before_jax_does_not_import_it(start):
    """The commands, and all they import at their top, in any depth."""
    seen = reached(start)
    assert not touches(seen, 'jax', 'flax', 'grain', 'tensorflow_datasets', 'orbax')
    assert start in seen and 'moe_vision.training.loop' not in seen
    assert 'moe_vision.config.rules' in seen or 'main' not in start


def test_imports_leave_the_devices_alone():
    """An array made while a module is imported starts jax before a process can join a pod's run."""
    names = [module(p) for p in FILES]
    text = 'import importlib, sys\nfor name in sys.argv[1:]:\n  importlib.import_module(name)'
    environment = os.environ | {'JAX_PLATFORMS': 'none_such', 'PYTHONPATH': str(ROOT)}
    ended = subprocess.run(
        [sys.executable, '-c', text, *names], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize('name', NAMES)
def test_a_module_is_read_in_one_sitting(name):
    assert len((ROOT / name).read_text().splitlines()) <= 350


def test_nothing_unpickles():
    for path in FILES:
        names = imported(path)
        assert not touches(names, 'pickle', 'dill', 'cloudpickle', 'joblib', 'marshal'), path
        assert 'allow_pickle=True' not in path.read_text(), path
