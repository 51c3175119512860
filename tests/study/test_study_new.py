"""A study file of one's own images: what it holds, what its budget buys, and that it runs."""

import os
import re

import numpy as np
import pytest
from study_fakes import fake_train_arm

from input_pipeline import prepare
from moe_vision.common.errors import UserError
from moe_vision.study import design, tuning
from moe_vision.study.__main__ import main
from moe_vision.study.load import load
from moe_vision.study.run import plan
from moe_vision.study.run.runner import run

SETS = ('digits', 'fashion_mnist', 'cifar100')  # what is declared is enough: they need no files


@pytest.fixture(autouse=True)
def no_tracing(monkeypatch):
    """The widened twin of the gate costs twice a run of k2, whatever the network."""
    cost = {'same_params': 2}
    monkeypatch.setattr(plan, 'training_flops', lambda config: cost.get(config.model.twin, 1))


def new(out, *flags, dataset='digits', hours=8, speed=1000):
    """The exit code of the command."""
    given = (f'--dataset={dataset}', f'--hours={hours}', f'--images_per_second={speed}')
    return main(['new', *given, '--cores=2', f'--out={out}', *flags])


def refused(capsys, *args, **kwargs):
    """The one line that the command answers with."""
    assert new(*args, **kwargs) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and err.count('\n') == 1, err
    return err


@pytest.mark.parametrize('dataset', SETS)
@pytest.mark.parametrize('backbone', design.BACKBONES)
def test_both_parts_pass_the_checks_of_every_study(tmp_path, dataset, backbone):
    file = tmp_path / 'mine.py'
    folder = f'--data_dir={tmp_path}'
    assert new(file, f'--backbone={backbone}', folder, dataset=dataset, hours=20) == 0
    gate, answer = (load(f'{file}:{part}') for part in ('gate', 'answer'))
    assert {a: c.model.twin for a, c in gate.configs.items()} == {
        'dense': 'same_width',
        'same_params': 'same_params',
    }
    twins = {a: (c.model.twin, c.model.moe.k) for a, c in answer.configs.items()}
    routers = {a: answer.configs[a].model.moe.router for a in twins}
    assert twins['dense'] == ('same_width', 2) and twins['dense_active'] == ('same_active_flops', 2)
    assert twins['k1'] == ('none', 1) and twins['k2'] == ('none', 2)
    assert all(routers[a] == a for a in ('random', 'frozen_random', 'shuffled'))
    primary = [n for n, c in answer.study.comparisons.items() if c.primary]
    assert primary == ['k2_minus_dense', 'k2_minus_dense_active', 'k1_minus_dense']
    assert len(primary) == design.COMPARISONS and len(twins) == design.ANSWER_ARMS
    assert answer.configs['k2'].dataset.data_dir == str(tmp_path)


def test_what_is_reported_was_never_tuned(tmp_path):
    new(tmp_path / 'mine.py')
    gate, answer = (load(f'{tmp_path}/mine.py:{part}').study for part in ('gate', 'answer'))
    assert len(answer.seeds) >= 6 and len(gate.seeds) == design.GATE_SEEDS
    early = {*gate.seeds, *answer.tune.seeds}
    assert not early & {s + a.seed_offset for a in answer.arms.values() for s in answer.seeds}
    assert gate.metric == 'validation_accuracy' and answer.metric == 'test_accuracy'
    assert [*answer.tune.arms] == ['dense', 'dense_active', 'k1', 'k2']  # architecture x k
    assert [len(v) for v in answer.tune.grid.values()] == [3]


@pytest.mark.parametrize('backbone', design.BACKBONES)
def test_every_number_of_the_network_and_of_training_is_explained(tmp_path, backbone):
    new(tmp_path / 'mine.py', f'--backbone={backbone}')
    lines = (tmp_path / 'mine.py').read_text().splitlines()
    assert max(map(len, lines)) <= 100
    for number, line in enumerate(lines):
        if re.match(r'    c\.|[A-Z]+ = ', line) and re.search(r'= .*\d', line):
            assert '# ' in line or lines[number - 1].strip().startswith('#'), line


def test_seeds_and_length_from_the_budget_by_hand():
    """Gate 6 x (1 + 2), tuning 4 x 3 x 2, answer 8 x n: 90, 98, 106 runs' worth for n = 6, 7, 8."""

    def buys(seconds, images=10**6):  # a step of 64 images takes a second
        hours = seconds / design.SHARE / 3600
        b = design.budget(hours, 1, 64.0, 64, images, same_params=2.0)
        return b.seeds, b.steps

    assert buys(90 * 1000 + 1) == (6, 1000)
    assert buys(98 * 1000 + 1) == (7, 1000)  # 7 are sure among three: 2^-6 < 0.05 / 3
    assert buys(106 * 4999) == (7, 106 * 4999 // 98 // 50 * 50)
    assert buys(106 * 5000 + 1) == (8, 5000)
    assert buys(138 * 7000 + 1) == (12, 7000)
    assert buys(1e9) == (12, 20_000)  # no longer than that
    # 1,600 images are 25 steps, 72 passes 1,800: what is left then buys seeds.
    assert buys(106 * 1800 - 1, 1600) == (7, 1800) and buys(106 * 1800 + 1, 1600) == (8, 1800)
    assert buys(1e9, 1600) == (12, 1800) and buys(1e9, 160) == (12, 1000)
    with pytest.raises(UserError, match=r'need 31\.3 hours on 1 core at 64 images/s'):
        buys(90 * 1000 - 1)  # 90,000 s / 0.8 / 3600 = 31.25 h


def test_the_stages_add_up_to_the_planned_share_of_the_budget():
    budget = design.budget(16, 2, 500, 64, 10**6, same_params=2.0)
    seconds = sum(seconds for _, seconds in budget.stages.values())
    assert 0.97 * design.SHARE * 16 * 3600 < seconds <= design.SHARE * 16 * 3600
    cells = {stage: cells for stage, (cells, _) in budget.stages.items()}
    assert cells == {'gate': 12, 'tuning': 24, 'answer': 8 * budget.seeds}


def test_what_it_prints(tmp_path, capsys):
    assert new(tmp_path / 'mine.py', '--sd=0.25') == 0
    out = capsys.readouterr().out
    seeds = len(load(f'{tmp_path}/mine.py:answer').study.seeds)
    assert f'gaps of {design.detectable(seeds, 0.25):.2f} pp' in out
    assert f'{seeds} seeds, 3 primary comparisons (alpha 0.05/3)' in out and 'sd of 0.25' in out
    assert '1.58 pp on the 360 test images (one image is 0.28 pp)' in out  # 100 sqrt(0.09 / 360)
    for part in ('gate', 'answer'):
        assert f'--study={tmp_path}/mine.py:{part} --workdir={tmp_path}/mine/{part}' in out
    assert 'The gate asks for 1 pp' in out  # of 287 validation images, one is 0.35 pp


def test_more_hours_than_the_images_can_use(tmp_path, capsys):
    for hours, more in ((2, False), (200, True)):
        assert new(tmp_path / f'mine_{hours}.py', hours=hours) == 0
        out = capsys.readouterr().out
        assert (f'{hours} hours are more than these images can use' in out) == more


def test_twice_the_sd_is_twice_the_gap():
    assert design.detectable(8, 1.0) == pytest.approx(2 * design.detectable(8, 0.5))
    assert design.detectable(8, 0.5) > design.detectable(12, 0.5) > 0.3


def test_six_seeds_are_few_for_three_comparisons(tmp_path, capsys):
    assert design.sure(7) and not design.sure(6)  # 2^-6 = 0.0156 <= 0.05 / 3 < 2^-5
    hours = 95 * 1000 * 64 / 1000 / design.SHARE / 3600 / 2  # 90 runs are 6 seeds, 98 are 7
    assert new(tmp_path / 'mine.py', hours=hours) == 0
    out = capsys.readouterr().out
    assert 'With 6 seeds no comparison is sure' in out
    assert len(load(f'{tmp_path}/mine.py:answer').study.seeds) == 6


def test_a_budget_that_is_too_small_writes_nothing(tmp_path, capsys):
    err = refused(capsys, tmp_path / 'mine.py', hours=0.1, speed=100)
    assert '--hours=0.1 is too little' in err and '6 seeds of 1,000 steps need' in err
    need = float(re.search(r'need ([\d.]+) hours', err)[1])
    assert not os.listdir(tmp_path)
    assert new(tmp_path / 'mine.py', hours=need, speed=100) == 0  # what it asked for is enough


def test_no_file_is_replaced(tmp_path, capsys, monkeypatch):
    """It says so before it measures anything."""
    monkeypatch.setattr(plan, 'training_flops', lambda config: pytest.fail('too late'))
    file = tmp_path / 'mine.py'
    file.write_text('mine')
    assert 'exists' in refused(capsys, file) and file.read_text() == 'mine'


@pytest.mark.parametrize(
    'flags, says',
    [
        (['--backbone=resnet'], "unknown backbone 'resnet'"),
        (['--hours=0'], '--hours is 0'),
        (['--hours=nan'], '--hours is nan'),
        (['--sd=-1'], '--sd is -1'),
        (['--image_size=3'], '--image_size is 3'),
        (['--dataset=digit'], "unknown data set 'digit'"),
        (['--dataset=image_folder'], 'python -m input_pipeline.prepare --dataset=image_folder'),
        (['--hour=3'], "Did you mean '--hours'"),
        (['--out={W}/mine.txt'], 'ends in .py'),
        (['--out={W}/no/mine.py'], 'does not exist'),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, flags, says):
    flags = [f'--data_dir={tmp_path}', *(f.replace('{W}', str(tmp_path)) for f in flags)]
    assert says in refused(capsys, tmp_path / 'mine.py', *flags)
    assert not os.listdir(tmp_path)


def test_a_path_may_hold_anything_that_a_file_system_allows(tmp_path):
    odd = tmp_path / 'it\'s """ odd'
    odd.mkdir()
    assert new(odd / "a'b.py", f'--data_dir={odd}') == 0
    loaded = load(f"{odd}/a'b.py:answer")
    assert loaded.configs['k1'].dataset.data_dir == str(odd) and loaded.study.name == 'a_b'


@pytest.fixture
def photographs(tmp_path):
    """A folder of images of two classes and of varied sizes; it returns where they lie prepared."""
    import cv2

    def made(*splits, images=100):
        rng = np.random.default_rng(0)
        for split in splits:
            for number in range(images):
                folder = tmp_path / 'images' / split / f'class_{number % 2}'
                folder.mkdir(parents=True, exist_ok=True)
                image = rng.integers(0, 256, (40 + number % 3, 50, 3), np.uint8)
                cv2.imwrite(str(folder / f'{number}.png'), image)
        prepare.prepare('image_folder', str(tmp_path / 'data'), str(tmp_path / 'images'))
        return f'--data_dir={tmp_path}/data'

    return made


def test_a_folder_of_images(tmp_path, photographs):
    file = tmp_path / 'mine.py'
    assert new(file, photographs('train', 'test', images=200), dataset='image_folder') == 0
    data = load(f'{file}:gate').configs['dense'].dataset
    assert data.image_size == 32 and data.validation_fraction == 0.2 and data.resident


def test_a_set_without_test_images_cannot_answer(tmp_path, photographs, capsys):
    folder = photographs('train', images=200)
    err = refused(capsys, tmp_path / 'mine.py', folder, dataset='image_folder')
    assert "'image_folder' has no test images" in err and 'test/' in err


def test_a_set_of_few_images_cannot_answer(tmp_path, photographs, capsys):
    folder = photographs('train', 'test')
    err = refused(capsys, tmp_path / 'mine.py', folder, dataset='image_folder')
    assert 'has 80 training images' in err and '128' in err


def test_it_runs_from_the_gate_to_the_reports(tmp_path, capsys):
    file = tmp_path / 'mine.py'
    assert new(file, f'--data_dir={tmp_path}', hours=1) == 0
    gate, answer = (load(f'{file}:{part}') for part in ('gate', 'answer'))
    run(gate, str(tmp_path / 'mine' / 'gate'), train_arm=fake_train_arm)
    workdir = str(tmp_path / 'mine' / 'answer')
    run(tuning.stage(answer), tuning.folder(workdir), train_arm=fake_train_arm)
    tuned = tuning.tuned(answer, workdir)
    run(tuned, workdir, train_arm=fake_train_arm)
    rates = {a: c.train.learning_rate for a, c in tuned.configs.items()}
    assert (
        rates['random'] == rates['shuffled'] == rates['k2']
        and rates['dense_again'] in (design.RATES['conv'])
    )
    capsys.readouterr()
    assert main(['report', f'--workdir={tmp_path}/mine']) == 0
    for part in ('gate', 'answer', 'answer/tuning'):
        assert (tmp_path / 'mine' / part / 'report' / 'report.md').exists()
    report = (tmp_path / 'mine' / 'answer' / 'report' / 'report.md').read_text()
    assert 'k2_minus_dense_active' in report
    # The same command goes on where it stopped: nothing is left to do.
    assert main(['run', '--list', f'--study={file}:answer', f'--workdir={workdir}']) == 0
    assert 'missing' not in capsys.readouterr().out


def test_a_cell_is_timed_without_writing_anything(tmp_path, monkeypatch, capsys):
    """Without --images_per_second the command trains k2 for some seconds."""
    from moe_vision.study.run import timed

    seen = []
    monkeypatch.setattr(timed, 'images_per_second', lambda config: seen.append(config) or 1000.0)
    flags = ['--dataset=digits', f'--data_dir={tmp_path}', '--hours=8', '--cores=2']
    assert main(['new', *flags, f'--out={tmp_path}/mine.py']) == 0
    assert [c.model.twin for c in seen] == ['none'] and seen[0].model.moe.k == 2
    assert '1,000 images/s' in capsys.readouterr().out


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, capsys):
    file = tmp_path / 'mine.py'
    monkeypatch.setattr(plan, 'training_flops', lambda config: file.write_text('mine'))
    assert 'exists' in refused(capsys, file) and file.read_text() == 'mine'


def test_the_time_of_a_cell_is_measured_on_one_core(tmp_path, monkeypatch):
    from moe_vision.study.run import timed

    new(tmp_path / 'mine.py', f'--data_dir={tmp_path}')
    config = load(f'{tmp_path}/mine.py:answer').configs['k2']
    calls = []
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {2, 5})
    monkeypatch.setattr(os, 'sched_setaffinity', lambda pid, cores: calls.append(cores))
    assert 1 < timed.images_per_second(config, seconds=0.0) < 1e6
    assert calls == [{2}, {2, 5}]
