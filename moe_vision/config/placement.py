"""Reads `model.moe.placement`: which blocks of a network are routed, or its head."""

import re

from moe_vision.common.errors import UserError, nearest

HEADS = ('head', 'pure_head')  # placements that route the pooled vector of each image
_PLACEMENTS = ('none', *HEADS, 'last_1', 'every_2')


def routed_blocks(placement: str, blocks: int | None = None) -> tuple[int, ...]:
    """The numbers, from 0, of the blocks that `model.moe.placement` routes.

    `last_2` of 6 blocks is (4, 5), `every_2` is (1, 3, 5), `1,3` is (1, 3); a head is ().

    Args:
      placement: none, head, pure_head, last_N, every_N, or block numbers separated by commas.
      blocks: how many there are; None checks the spelling alone and returns ().

    Raises:
      UserError: not one of these forms, or a block that does not exist.
    """
    if placement in ('none', *HEADS):
        return ()
    match = re.fullmatch(r'(last_|every_|)(\d+(?:,\d+)*)', placement.replace(' ', ''))
    form, listed = match.groups() if match else ('', '')
    numbers = [int(n) for n in listed.split(',') if n]
    if (
        len(set(numbers)) != len(numbers)
        or not numbers
        or (form and (len(numbers) > 1 or numbers[0] < 1))
    ):
        raise UserError(
            f"model.moe.placement is '{placement}'.{nearest(placement, _PLACEMENTS)} "
            "Allowed: none, head, pure_head, last_N, every_N, or block numbers such as '1,3'."
        )
    if blocks is None:
        return ()
    most = blocks if form else blocks - 1
    if max(numbers) > most:
        raise UserError(
            f"model.moe.placement is '{placement}' but the backbone has {blocks} "
            f'blocks; the largest number here is {most}.'
        )
    if form == 'last_':
        return tuple(range(blocks - numbers[0], blocks))
    if form == 'every_':
        return tuple(range(numbers[0] - 1, blocks, numbers[0]))
    return tuple(sorted(numbers))
