"""DESIGN's directions: who may import whom, and modules that can be read in one sitting."""

import ast
from pathlib import Path

import pytest
from train_cases import ROOT

FILES = sorted(p for folder in ('moe_vision', 'input_pipeline', 'configs')
               for p in (ROOT / folder).rglob('*.py')) + [ROOT / 'main.py']
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
        'a.b', 'c', 'c.d', 'top.mid', 'top.mid.e', 'top.mid.g', 'top.mid.g.h'}
    assert found_in('from .x import y', 'top.mid', package=True) == {'top.mid.x', 'top.mid.x.y'}
    assert 'moe_vision.step' in imported(ROOT / 'moe_vision' / 'train.py')


def test_nothing_but_what_starts_runs_imports_train():
    bad = {module(p) for p in FILES if touches(imported(p), 'moe_vision.train')}
    assert bad == {'main', 'moe_vision.study.cells'}


def test_studies_stand_on_top():
    """Configs declare them, a run may probe its network; nothing else knows of them."""
    users = {module(p): touches(imported(p), 'moe_vision.study') - {'moe_vision.study'}
             for p in FILES}
    outside = {u: names for u, names in users.items()
               if names and not touches({u}, 'moe_vision.study')}
    assert outside.pop('moe_vision.run') == {'moe_vision.study.mechanism'}
    for user, names in outside.items():
        assert touches({user}, 'configs.studies'), user
        assert names == touches(names, 'moe_vision.study.types'), user


ALLOWED = {  # package: what of moe_vision it may import; '' is itself
    'moe_vision.routing': {'moe_vision.routing', 'moe_vision.errors'},
    'moe_vision.layers': {'moe_vision.routing', 'moe_vision.layers', 'moe_vision.registry',
                          'moe_vision.errors'},
    'moe_vision.models': {'moe_vision.routing', 'moe_vision.layers', 'moe_vision.models',
                          'moe_vision.registry', 'moe_vision.errors', 'moe_vision.settings',
                          'moe_vision.flops'},
    'moe_vision.report': {'moe_vision.report'},
    'moe_vision.study.report': {'moe_vision.study.report', 'moe_vision.study.types',
                                'moe_vision.study.analysis_types', 'moe_vision.report',
                                'moe_vision.study.statistics'},
    'input_pipeline': set(),
}


@pytest.mark.parametrize('package', ALLOWED)
def test_packages_look_in_one_direction(package):
    assert under(package)
    for path in under(package):
        ours = touches(imported(path), 'moe_vision') - {'moe_vision', 'moe_vision.study'}
        assert ours <= touches(ours, *ALLOWED[package]), path


@pytest.mark.parametrize('package, foreign', [
    ('moe_vision.routing', ('flax', 'optax', 'ml_collections', 'configs')),
    ('moe_vision.report', ('jax', 'flax', 'optax', 'orbax', 'input_pipeline', 'configs')),
    ('moe_vision.study.report', ('jax', 'flax', 'optax', 'orbax', 'input_pipeline', 'configs')),
    ('moe_vision.layers', ('optax', 'orbax', 'ml_collections', 'configs', 'input_pipeline')),
    ('moe_vision.models', ('optax', 'orbax', 'ml_collections', 'configs')),
    ('input_pipeline', ('flax', 'configs', 'tensorflow'))])
def test_packages_do_without(package, foreign):
    for path in under(package):
        assert not touches(imported(path), *foreign), path


def test_configdict_stays_where_it_is_checked():
    users = {module(p) for p in FILES if touches(imported(p), 'ml_collections')}
    allowed = {'main', 'moe_vision.config', 'moe_vision.config_file'}
    assert {u for u in users if not u.startswith('configs')} <= allowed


@pytest.mark.parametrize('start', ['main', 'moe_vision.study.__main__', 'moe_vision.pod.__main__',
                                   'moe_vision.study.analysis', 'moe_vision.study.run'])
def test_what_answers_before_jax_does_not_import_it(start):
    """The commands, and all they import at their top, in any depth."""
    known = {module(p): p for p in FILES}
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        tree = ast.parse(known[name].read_text())
        top = ast.unparse(ast.Module([n for n in tree.body if isinstance(
            n, ast.Import | ast.ImportFrom)], []))
        names = found_in(top, name, known[name].name == '__init__.py')
        assert not touches(names, 'jax', 'flax', 'grain', 'tensorflow_datasets', 'orbax'), name
        todo += names
    assert start in seen and 'moe_vision.train' not in seen
    assert 'moe_vision.rules' in seen or 'main' not in start


@pytest.mark.parametrize('name', NAMES)
def test_a_module_is_read_in_one_sitting(name):
    assert len((ROOT / name).read_text().splitlines()) <= 350


def test_nothing_unpickles():
    for path in FILES:
        names = imported(path)
        assert not touches(names, 'pickle', 'dill', 'cloudpickle', 'joblib', 'marshal'), path
        assert 'allow_pickle=True' not in path.read_text(), path
