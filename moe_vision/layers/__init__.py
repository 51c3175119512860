"""Routed layers for Flax Linen models: `from moe_vision.layers import MoE`."""

from moe_vision.layers.moe import DenseBlock, ExpertBank, MoE, Step

__all__ = ['DenseBlock', 'ExpertBank', 'MoE', 'Step']
