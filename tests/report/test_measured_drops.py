"""The drops of a run, as the key that a dense twin reads."""

import json

import pytest

from moe_vision.config.check import check
from moe_vision.config.schema import defaults
from moe_vision.report import drops


def finished(folder, rates, tested=0.125):
    """A run that wrote a training row per rate, 10 steps apart."""
    (folder / 'metrics').mkdir(parents=True)
    lines = [
        {
            'step': 10 * (i + 1),
            'split': 'train',
            'layers': {'block_1': {'drop_rate': rate}, 'block_3': {'drop_rate': rate / 2}},
        }
        for i, rate in enumerate(rates)
    ]
    (folder / 'metrics' / 'until-000000100.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    layers = {'layers': {'block_1': {'drop_rate': tested}, 'block_3': {'drop_rate': tested}}}
    (folder / 'evaluation.json').write_text(json.dumps(layers))
    return str(folder)


def test_shares_by_hand(tmp_path, capsys):
    """Five rows at 1/5 .. 5/5 of training for moments 0, 1/2, 1; layers and runs are averaged."""
    one = finished(tmp_path / 'one', [0.8, 0.4, 0.4, 0.2, 0.2])
    # rows at .2 | .4 .6 | .8 1.0 of training go to 0, 1/2 and 1; the mean of two layers is 3/4
    assert drops.main([f'--workdir={one}', '--points=3']) == 0
    assert capsys.readouterr().out == (
        '--config.model.measured_drops=0.6000,0.3000,0.1500,0.1250\n'
    )
    two = finished(tmp_path / 'two', [0.0] * 5, tested=0.375)
    assert drops.main([f'--workdir={one}', f'--workdir={two}', '--points=3']) == 0
    assert capsys.readouterr().out == (
        '--config.model.measured_drops=0.3000,0.1500,0.0750,0.2500\n'
    )


def test_moments_without_a_row_are_filled_in_between(tmp_path):
    run = drops.read.load(finished(tmp_path / 'w', [0.8, 0.0]))  # at 1/2 and 1 of training
    assert drops.measured(run, 5) == pytest.approx([0.6, 0.6, 0.6, 0.3, 0.0, 0.125])


def test_what_it_prints_is_a_key_that_the_config_takes(tmp_path, capsys):
    from moe_vision.config import source

    assert drops.main([f'--workdir={finished(tmp_path / "w", [0.5, 0.25])}']) == 0
    flag = capsys.readouterr().out.strip()
    values = source.load('configs/digits_k2.py', [flag, '--config.model.twin=same_measured_drops'])
    assert len(check(values).model.measured_drops) == 10
    assert defaults()['model']['measured_drops'] == ()


def test_a_run_without_drops_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / 'w').mkdir()
    (tmp_path / 'w' / 'evaluation.json').write_text('{"layers": {}}')
    assert drops.main([f'--workdir={tmp_path}/w']) == 2
    error = capsys.readouterr().err
    assert 'holds no drop rates' in error and error.count('\n') == 1
    assert drops.main([f'--workdir={tmp_path}/w', '--points=0']) == 2
