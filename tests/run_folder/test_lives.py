"""Each start of a run keeps its config, and what a run has left is found without jax."""

import json
import subprocess
import sys

import pytest

from moe_vision.common.errors import UserError
from moe_vision.run_folder import lives


def kept(folder) -> dict[str, dict]:
    return {p.name: json.loads(p.read_text()) for p in (folder / 'lives').iterdir()}


def test_each_life_keeps_its_config_and_where_it_began(tmp_path):
    for number, start in enumerate([0, 12, 12], 1):
        lives.keep(str(tmp_path), {'config': {'seed': number}}, start)
    assert kept(tmp_path) == {
        '1.json': {'start': 0, 'config': {'seed': 1}},
        '2.json': {'start': 12, 'config': {'seed': 2}},
        '3.json': {'start': 12, 'config': {'seed': 3}},
    }


@pytest.mark.parametrize('text', ['{"config": {"seed": 7}}', '{"half'])
def test_the_config_of_a_run_from_before_lives_is_kept_as_it_is(text, tmp_path):
    (tmp_path / 'config.json').write_text(text)
    lives.keep(str(tmp_path), {'config': {}}, 5)
    assert (tmp_path / 'lives' / '1.json').read_text() == text
    assert json.loads((tmp_path / 'lives' / '2.json').read_text()) == {'start': 5, 'config': {}}


def test_other_files_among_the_lives_do_not_count(tmp_path):
    for name in ('9.json.part', 'x.json', '1e3.json', '٣.json'):
        (tmp_path / 'lives').mkdir(exist_ok=True)
        (tmp_path / 'lives' / name).write_text('')
    lives.keep(str(tmp_path), {}, 0)
    assert json.loads((tmp_path / 'lives' / '1.json').read_text()) == {'start': 0}


def test_how_far_a_run_came(tmp_path):
    assert lives.done(str(tmp_path)) == 0 and not lives.begun(str(tmp_path))
    for name in ('9', '10', '11.orbax-checkpoint-tmp', '007', 'x'):
        (tmp_path / 'checkpoints' / 'latest' / name).mkdir(parents=True)
    assert lives.steps_in(tmp_path / 'checkpoints' / 'latest') == [10, 9]
    assert lives.done(str(tmp_path)) == 10 and lives.begun(str(tmp_path))
    assert lives.config(str(tmp_path)) is None


def test_lives_that_cannot_be_kept_are_one_line(tmp_path):
    (tmp_path / 'lives').write_text('')
    with pytest.raises(UserError, match='lives.* cannot be written') as e:
        lives.keep(str(tmp_path), {}, 0)
    assert '\n' not in str(e.value)


def test_a_run_that_goes_on_is_judged_without_jax():
    code = 'import sys, moe_vision.training.continuing; assert "jax" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
