"""Slots per expert, in exact integer arithmetic."""

import math
from fractions import Fraction


def capacity(factor: float, k: int, tokens: int, num_experts: int, multiple: int = 1) -> int:
    """C = clip(ceil(factor * k * T / E), 1, T), then rounded up to a multiple.

    The factor is read as the decimal number that was written: 1.1 * 100 / 5 gives 22 slots, not the
    23 that binary floats give. An infinite factor makes room for all T tokens.

    Args:
      factor: capacity factor, positive.
      k: choices per token.
      tokens: T, tokens of a group.
      num_experts: E.
      multiple: round up to a multiple of this; the result may then exceed T.

    Raises:
      ValueError: the factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f'capacity factor must be positive, not {factor}')
    slots = tokens
    if math.isfinite(factor):
        slots = min(max(math.ceil(Fraction(str(factor)) * k * tokens / num_experts), 1), tokens)
    return -(-slots // multiple) * multiple


def effective_factor(slots: int, k: int, tokens: int, num_experts: int) -> float:
    """C * E / (k * T): the capacity factor after rounding."""
    return slots * num_experts / (k * tokens)
