"""The benchmark compares what it says it compares."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import campaign, input_pipeline, routing, seeds
from benchmarks.timing import medians
from moe_vision import registry
from moe_vision.layers.experts import Mlp
from moe_vision.layers.moe import make_router
from moe_vision.routing.plan import index_plan
from moe_vision.routing.types import Context

pytestmark = pytest.mark.usefixtures('quick')


def test_the_einsum_form_computes_the_same_layer():
    t, d, e, k, slots = 24, 8, 4, 2, 9  # 48 choices for 36 slots: some are dropped
    expert = Mlp(registry.MlpArgs(), d, 16)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    bank = {n: jax.random.normal(next(keys), (e, *s)) for n, (s, _) in expert.shapes().items()}
    params = {'kernel': jax.random.normal(next(keys), (d, e))}
    x = jax.random.normal(next(keys), (1, t, d))
    router = make_router('top_k', None, e, k)

    def plan_of(params, x):
        context = Context(valid=jnp.ones((1, t), bool), key=None, group=jnp.zeros(1, jnp.int32))
        return index_plan(router(params, {}, x, context), e, slots)

    assert not plan_of(params, x).keep.all()
    ours = jax.jit(routing.routed(expert, e, k, slots))(params, bank, x)
    theirs = jax.jit(routing.by_einsum(plan_of, expert, slots))(params, bank, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind, shape, compared', [
    ('mlp', (32, 8, 16, 4, 2, 1.25), {'layer', 'floor', 'dense', 'einsum'}),
    ('conv', (8, 4, 8, 2, 1, 1.25), {'layer', 'floor', 'dense'})])
def test_a_row_has_a_time_for_everything_compared(kind, shape, compared):
    row = routing.row(kind, shape, rounds=1)
    for part in ('forward_ms', 'both_ms'):
        assert set(row[part]) == compared
        assert min(row[part].values()) > 0
    assert row['capacity'] == {'mlp': 20, 'conv': 5}[kind]  # ceil(1.25*2*32/4), ceil(1.25*8/2)


def test_medians_leave_the_first_rounds_out():
    calls = []
    taken = medians({'f': lambda: calls.append(1)}, {'f': ()}, rounds=3)
    assert len(calls) == 5 and taken['f'] >= 0


def test_together_is_advised_where_it_saves_a_tenth():
    assert seeds.advice({1: 1.0, 2: 0.8, 5: 0.9, 10: 1.3}) == 'together'
    assert seeds.advice({1: 0.5, 2: 0.95, 5: 0.91, 10: 0.7}) == 'one_by_one'
    assert seeds.advice({1: 0.5}) == 'one_by_one'


def test_a_campaign_by_hand(monkeypatch):
    """Of k = 2: compiling once; 8 seeds of training, evaluations, and 3 + 8 probes."""
    data = campaign.SETS['fashion_mnist']
    timed = {100: {'seconds': 70.0, 'compile_seconds': 40.0, 'images_per_second': 500.0}}
    monkeypatch.setattr(campaign.rows, 'timings', lambda workdir: dict.fromkeys(
        campaign.pilot.study_of(data).arms, timed))
    found = campaign.seconds(data, '')['placement']['backbone']
    beside = 70 - 40 - 6000 / 500
    beside *= 1 + 11 * 2000 / (2 * 3000 + 10000)
    images = 8 * data.recipe['dataset.train_images']
    assert found == pytest.approx(40 + 8 * (images / 500 + beside))


def test_the_campaign_takes_what_the_document_says(monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    data = campaign.SETS['fashion_mnist']
    found = campaign.seconds(data, 'results/fashion_mnist/pilot')
    told = (root / 'docs' / 'studies.md').read_text().splitlines()
    table = campaign.table(data, found)
    assert all(line in told for line in table), table
    assert sum(sum(of.values()) for of in found.values()) < 20.5 * 3600
    assert sum(map(len, found.values())) * len(data.seeds) == 728


def test_readers_of_images_do_the_same_work(monkeypatch, tmp_path):
    monkeypatch.setattr(input_pipeline, 'IMAGES', 4)
    monkeypatch.setattr(input_pipeline, 'BATCH', 2)
    files = input_pipeline.photographs(4)
    assert len(set(files)) == 4 and all(80_000 < len(f) < 160_000 for f in files)
    ours, pillow = (by(files)(7) for by in (lambda f: input_pipeline.by_rows(f, 0),
                                            input_pipeline.by_pillow))
    for one, other in zip(ours, pillow, strict=True):
        assert one.shape == other.shape == (224, 224, 3)
        assert np.abs(one.astype(int) - other).mean() < 8  # the same crop, other filters
        assert np.abs(one.astype(int) - other[:, ::-1]).mean() > 12
    loader = input_pipeline.by_loader(str(tmp_path))
    first = loader(0)
    assert [batch['image'].shape for batch in first] == [(2, 224, 224, 3)] * 2
    assert all(batch['valid'].all() for batch in first)
    rates = input_pipeline.measure({'ours': input_pipeline.by_rows(files, 2), 'pil': loader}, 3)
    assert [len(r) for r in rates.values()] == [3, 3] and min(map(min, rates.values())) > 0


def test_the_table_of_readers_has_medians_and_ratios():
    lines = input_pipeline.table({'ours': [30.0, 20.0, 10.0], 'pil': [10.0, 10.0, 10.0]})
    assert lines[2] == '| ours | 20 | 10 to 30 | 2.00 |'
