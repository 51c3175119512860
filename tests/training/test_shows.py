"""What a run shows while it trains: warnings that name the key to look at, and lines or a bar."""

import io

import pytest
import train_cases

from moe_vision.common.json_values import differences, finite, plain
from moe_vision.run_folder.record import collapsed
from moe_vision.run_folder.tensorboard import flat
from moe_vision.training import loop, progress
from moe_vision.training.warnings import Health

WELL = {'dead_experts': 0, 'effective_experts': 3.9, 'max_over_mean': 1.1, 'drop_rate': 0.0}
WELL['load'] = [0.25] * 4
ILL = {
    'dead': ({'dead_experts': 1}, '1 of its 4 experts is dead', 'model.moe.losses'),
    'collapse': (
        {'effective_experts': 1.5},
        'fewer than half of its 4 experts carry the load (the equivalent of 1.5)',
        'model.moe.losses',
    ),
    'drops': ({'drop_rate': 0.31}, '31% of the choices are dropped', 'model.moe.capacity_factor'),
    'load': ({'max_over_mean': 3.5}, '3.5 times the mean load', 'model.moe.losses'),
}


@pytest.fixture
def health(data_dir):
    return Health(train_cases.make(data_dir), warmup=0)


def row(step, **layers):
    return {'step': step, 'layers': {n: WELL | x for n, x in layers.items()}}


@pytest.mark.parametrize('kind', ILL)
def test_a_warning_comes_once_until_the_problem_has_passed(health, kind, caplog):
    ill, says, key = ILL[kind]
    assert health.check(row(1, block_1={})) == []
    (warning,) = health.check(row(2, block_1=ill))
    assert says in warning and key in warning and 'step 2, block_1' in warning
    assert caplog.messages == [warning]
    assert health.check(row(3, block_1=ill)) == []
    assert health.check(row(4, block_1={})) == []
    assert len(health.check(row(5, block_1=ill))) == 1


def test_each_layer_and_kind_of_problem_warns_for_itself(health):
    assert len(health.check(row(1, block_1=ILL['dead'][0], block_2={}))) == 1
    warnings = health.check(
        row(2, block_1=ILL['dead'][0] | ILL['drops'][0], block_2=ILL['dead'][0])
    )
    assert [('drops' if 'dropped' in w else 'dead', w.split()[2]) for w in warnings] == [
        ('drops', 'block_1:'),
        ('dead', 'block_2:'),
    ]
    assert health.check({'step': 3, 'layers': {}}) == []  # a dense network has nothing to warn of


@pytest.mark.parametrize('kind', ILL)
def test_nothing_warns_before_the_warm_up_is_over(data_dir, kind):
    health = Health(train_cases.make(data_dir), warmup=20)
    ill = ILL[kind][0]
    assert health.check(row(10, block_1=ill)) == health.check(row(20, block_1=ill)) == []
    assert len(health.check(row(30, block_1=ill))) == 1


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def shown(stream, clock):
    """What a run of 20 steps shows at steps 5 and 10, after a second a step and a pause of five."""
    p = progress.Progress(20, 0, 32, stream)
    p.first_step_done(1)
    assert p.timing(1)['images_per_second'] != p.timing(1)['images_per_second']  # no step yet
    clock.now += 4
    rows = []
    for step in (5, 10):
        timing = p.timing(step)
        assert timing['images_per_second'] == pytest.approx(32)
        rows.append(
            {
                'step': step,
                'epoch': step / 4,
                'loss': 1.23456,
                'accuracy': 0.5,
                'layers': {
                    'a': {'drop_rate': 0.1, 'max_over_mean': 2.0},
                    'b': {'drop_rate': 0.2, 'max_over_mean': 1.5},
                },
                'timing': timing,
            }
        )
        p.clear()
        p.show(rows[-1])
        with p.paused():
            clock.now += 5
            p.line('validation')
        clock.now += 5
    p.done()
    assert p.images_per_second(15) == pytest.approx(32)  # 14 steps, compiling and pauses left out
    return stream.getvalue()


def test_the_share_of_the_peak_where_the_chip_is_known(monkeypatch, setup):
    assert loop._seconds_at_peak(setup) is None  # a CPU
    monkeypatch.setattr(loop.chips, 'peak', lambda kind: 1e9)
    seconds_at_peak = loop._seconds_at_peak(setup)
    assert seconds_at_peak == 3 * setup.cost.flops_executed / 1e9  # on one device
    clock, stream = Clock(monkeypatch), Stream(False)
    p = progress.Progress(20, 0, 32, stream, seconds_at_peak=seconds_at_peak)
    p.first_step_done(1)
    clock.now += 2
    timing = p.timing(3)  # 32 images/s
    assert timing['share_of_peak'] == pytest.approx(32 * seconds_at_peak)
    p.show(
        {
            'step': 3,
            'epoch': 1,
            'loss': 1,
            'accuracy': 1,
            'layers': {},
            'timing': timing | {'share_of_peak': 0.415},
        }
    )
    assert '32 img/s  41.5% of peak  ETA' in stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    text = shown(Stream(False), Clock(monkeypatch))
    assert text.splitlines() == [
        'step 5/20  epoch 1.2  loss 1.235  acc 0.500  drop 20.0%  max/mean 2.00  32 img/s  '
        'ETA 0:15',
        'validation',
        'step 10/20  epoch 2.5  loss 1.235  acc 0.500  drop 20.0%  max/mean 2.00  32 img/s  '
        'ETA 0:10',
        'validation',
    ]


def test_a_bar_where_there_is_one(monkeypatch):
    text = shown(Stream(True), Clock(monkeypatch))
    bars = [t for t in text.split('\r\x1b[2K') if '█' in t]
    assert [t.count('█') for t in bars] == [5, 10]
    assert [t.count('·') for t in bars] == [15, 10]
    assert all('step' in t and '\n' not in t for t in bars)
    assert text.endswith('validation\n\n')


def test_long_times_have_hours():
    assert [progress._clock(s) for s in (5, 65, 3725)] == ['0:05', '1:05', '1:02:05']


def test_numbers_that_json_lacks_become_null():
    assert finite({'a': float('nan'), 'b': [1.0, float('-inf')], 'c': (2, 'x', True)}) == {
        'a': None,
        'b': [1.0, None],
        'c': [2, 'x', True],
    }


def test_differences_name_the_leaves():
    before = plain({'a': {'b': 1, 'c': (1, 2)}, 'd': float('inf')})
    assert list(differences(before, {'a': {'b': 1, 'c': [1, 2]}, 'd': 'inf'})) == []
    assert list(differences(before, {'a': {'b': 2, 'c': [1, 3]}, 'e': 'x'})) == [
        'a.b 1 -> 2',
        'a.c.1 2 -> 3',
        "d 'inf' -> nothing",
        "e nothing -> 'x'",
    ]
    assert list(differences({}, {'e': 'x'}, lambda path, new: 'x')) == []


def test_rows_are_flattened_for_tensorboard():
    assert flat({'step': 3, 'split': 'train', 'loss': 0.5, 'layers': {'a': {'load': [1, 2]}}}) == [
        ('loss', 0.5),
        ('layers/a/load/0', 1),
        ('layers/a/load/1', 2),
    ]


@pytest.mark.parametrize(
    'layer, want',
    [
        ({'effective_experts': 2.0, 'dead_experts': 0}, False),
        ({'effective_experts': 1.99, 'dead_experts': 0}, True),
        ({'effective_experts': 3.0, 'dead_experts': 1}, True),
    ],
)
def test_collapse(layer, want):
    four = {'load': [0.25] * 4}
    well = {'effective_experts': 4.0, 'dead_experts': 0}
    assert collapsed({'a': well | four, 'b': layer | four}) is want
