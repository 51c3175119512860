"""A step donates its state, its metrics stay on the device, and nothing is compiled twice."""

import contextlib

import jax
import pytest
import train_cases

from moe_vision.run_folder import metrics
from moe_vision.training import loop

EPOCH = 41  # steps: 1,293 images by 32
LOOP = {
    'train.steps': 3 * EPOCH,
    'eval.every_steps': EPOCH,
    'checkpoint.every_steps': EPOCH,
    'log.every_steps': 10,
    'model.args': {'widths': (8,), 'depth': 1},
}


@pytest.fixture
def fetched(monkeypatch):
    """A list that grows whenever the value of an array on a device is fetched."""
    times = []
    value = jax._src.array.ArrayImpl._value.fget

    def watched(array):
        times.append(array.shape)
        return value(array)

    monkeypatch.setattr(jax._src.array.ArrayImpl, '_value', property(watched))
    return times


@contextlib.contextmanager
def compiling():
    """A list of the compilations and traces, which grows as they happen."""
    events = []

    def listen(event: str, _: float, **__) -> None:
        if event.endswith(('backend_compile_duration', 'jaxpr_trace_duration')):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    'changes', [{}, pytest.param({'dataset.resident': True}, marks=pytest.mark.slow)]
)
def test_after_the_first_epoch_nothing_is_compiled_and_only_rows_are_fetched(
    data_dir, tmp_path, monkeypatch, fetched, changes
):
    config = train_cases.make(data_dir, LOOP | changes)
    seen = {}  # steps -> numbers of fetches and compilations before that row, + 0.5: after it
    row = metrics.Interval.row

    def counted(self, *args):
        step = self._pending[-1][0]
        seen[step] = len(fetched), len(events)
        result = row(self, *args)
        seen[step + 0.5] = len(fetched), len(events)
        return result

    monkeypatch.setattr(metrics.Interval, 'row', counted)
    with compiling() as events:
        loop.train(config, str(tmp_path), full_report=False)
    assert 0 < seen[EPOCH][1] and seen[EPOCH + 9][1] == seen[3 * EPOCH][1]
    # between two rows nothing is fetched, except by validations
    assert seen[60.5][0] == seen[70][0] and seen[100.5][0] == seen[110][0]
    assert seen[60][0] < seen[60.5][0]


def test_a_step_donates_its_state(setup):
    state = setup.fresh_state(0)
    batch = jax.tree.map(
        lambda x: jax.numpy.zeros(x.shape, x.dtype),
        {
            'image': jax.ShapeDtypeStruct((1, 32, 8, 8, 1), 'uint8'),
            'label': jax.ShapeDtypeStruct((1, 32), 'int32'),
            'valid': jax.ShapeDtypeStruct((1, 32), 'bool'),
        },
    )
    new, _ = setup.step(state, batch)
    jax.block_until_ready(new)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert [jax.tree_util.keystr(p) for p, x in leaves if not x.is_deleted()] == []
