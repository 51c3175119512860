"""The claims on the cells of a study: one file for each cell under W/claims (`common.claims`)."""

from pathlib import Path

from moe_vision.common import claims
from moe_vision.common.claims import BEAT, STALE

Cell = tuple[str, int]  # arm, seed


class Claims(claims.Claims[Cell]):
    """The claims of this process in a study's workdir; see `common.claims.Claims`."""

    def __init__(self, workdir: str, beat: float = BEAT, stale: float = STALE):
        super().__init__(Path(workdir) / 'claims', beat, stale)

    def _path(self, cell: Cell) -> Path:
        return self._folder / f'{cell[0]}.seed_{cell[1]}.json'
