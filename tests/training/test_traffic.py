"""What routed layers send, compared with counts by hand."""

import dataclasses

import pytest
import train_cases

import input_pipeline
from moe_vision import leverage
from moe_vision.training import traffic

NET = {
    'model.args': {'widths': (8, 16), 'depth': 1},
    'model.moe.num_experts': 8,
    'model.moe.k': 2,
    'model.moe.capacity_factor': 1.25,
    'model.moe.group_size': 16,
    'train.batch_size': 128,
    'model.moe.router': 'top_k',
    'model.moe.router_args': {'noise': 'gaussian'},
    'model.moe.losses': {'importance': 0.01},
}
TOKEN = 4 * 4 * 16 * 4  # bytes of a map at block_1: 4x4 of 16 channels, float32


def measure(data_dir, mesh_shape, changes=None):
    """(config, cost, traffic of its one routed layer)."""
    config = train_cases.make(data_dir, NET | (changes or {}))
    cost = leverage.measure(config, input_pipeline.info(config.dataset))
    return config, cost, traffic.of_layers(config, cost, mesh_shape)['block_1']


def test_slots_travel_where_a_device_holds_whole_groups(data_dir):
    """C = ceil(1.25 * 2 * 16 / 8) = 5: a device's one group has 40 slots; 7/8 leave it, 4 times."""
    _, cost, layer = measure(data_dir, {'data': 1, 'expert': 8})
    assert layer.tokens == 16 and not layer.across
    assert layer.exchanged == 4 * 40 * TOKEN * 7 // 8
    assert layer.padding == pytest.approx(1 - 1 / 1.25)
    experts = next(b.bytes_experts for b in cost.blocks if b.name == 'block_1')
    assert layer.replicated == 2 * experts * 7 // 8


def test_features_travel_where_groups_span_devices(data_dir):
    """Each of 4 devices gathers the 64 maps of its expert axis, 3/4 of them from the others."""
    config, cost, layer = measure(data_dir, {'data': 2, 'expert': 4}, {'model.moe.group_size': 64})
    assert layer.tokens == 16 and layer.across
    assert layer.exchanged == 4 * 64 * TOKEN * 3 // 4
    (line,) = traffic.lines({'block_1': layer})
    assert 'groups span the expert axis' in line and '16 tokens on a device' in line
    micro = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=2))
    half = traffic.of_layers(micro, cost, {'data': 1, 'expert': 4})['block_1']
    assert half.exchanged == 2 * 4 * 64 * TOKEN * 3 // 4  # 4 times in 2 micro-batches


def test_experts_on_every_device_exchange_nothing(data_dir):
    _, _, layer = measure(data_dir, {'data': 8, 'expert': 1})
    assert layer.exchanged == layer.replicated == 0


def test_a_dense_network_has_no_traffic(data_dir):
    config = train_cases.make(data_dir, NET | {'model.twin': 'same_width'})
    cost = leverage.measure(config, input_pipeline.info(config.dataset))
    assert traffic.of_layers(config, cost, {'data': 2, 'expert': 4}) == {}


@pytest.mark.parametrize(
    'changes, padding',
    [
        ({'model.moe.capacity_factor': 0.5}, 0.0),  # half of the choices are dropped
        ({'model.moe.capacity_factor': 2.5}, 1 - 1 / 2.5),
        (  # its choices fill what room there is
            {
                'model.moe.router': 'dynmole',
                'model.moe.router_args': {},
                'model.moe.losses': {},
                'model.moe.capacity_factor': 4.0,
            },
            0.0,
        ),
    ],
)
def test_padding_is_what_balanced_choices_leave_empty(data_dir, changes, padding):
    _, cost, layer = measure(data_dir, {'data': 1, 'expert': 8}, changes)
    assert layer.padding == pytest.approx(padding, abs=1e-6)
    assert (cost.padding > 0) == (padding > 0)


def test_a_bank_of_two_layers_is_no_layers_gradient(data_dir):
    pooled = {'model.moe.placement': 'every_1', 'model.moe.bank': '2'}
    config = train_cases.make(data_dir, NET | pooled | {'model.args': {'widths': (16, 16)}})
    cost = leverage.measure(config, input_pipeline.info(config.dataset))
    for line in traffic.lines(traffic.of_layers(config, cost, {'data': 2, 'expert': 4})):
        assert 'experts on other devices' in line and 'gradients' not in line
