"""Routed layers for Flax Linen models: `from moe_vision.layers import MoE`."""

from moe_vision.layers.banks import DenseBlock, ExpertBank, Shared, SharedBank
from moe_vision.layers.drops import DroppingBlock
from moe_vision.layers.moe import MoE
from moe_vision.layers.route import Step

__all__ = ['DenseBlock', 'DroppingBlock', 'ExpertBank', 'MoE', 'Shared', 'SharedBank', 'Step']
