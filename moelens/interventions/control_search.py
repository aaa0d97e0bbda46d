"""Search for sets of experts that do as much as given ones: random sets, improved by exchanging expert by expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Floats

Groups = tuple[tuple[int, ...], ...]
"""A set of experts, as groups of one layer. An expert is the place of its layer × the number of experts + its id."""
_RANDOM_SETS = 1_000
_SWEEPS = 4
_STARTS = 4  # random starts for each set that is wanted
_CLOSE = 0.1
"""Distance in each quantity, in standard deviations over random sets, at which the search of a set ends."""


@dataclass(frozen=True, eq=False)
class SetSearch:
    """Looks for sets with the group sizes of `changed`, among the other experts.

    Attributes:
        quantities: what sets are compared in, `[layer, expert, quantity]`.
        changed: the experts to compare with, which are in no set.
        same_layers: groups stay in the layers of `changed`; otherwise each may be in any layer.
    """

    quantities: Floats
    changed: Groups
    same_layers: bool

    def sums(self, sets: Sequence[Groups]) -> Floats:
        """Return the logarithm of each quantity, summed over the experts of each set, `[set, quantity]`."""
        flat = self.quantities.reshape(-1, self.quantities.shape[-1])
        return np.asarray(np.log(np.maximum([flat[members(s)].sum(0) for s in sets], 1e-9)))

    def random_sets(self, rng: np.random.Generator, draws: int) -> list[Groups]:
        """Return different random sets: all of them for a single expert, else 1,000 or somewhat more than `draws`."""
        if [len(g) for g in self.changed] == [1]:
            return [((int(e),),) for e in rng.permutation(self._allowed(self.changed[0], ()))]
        drawn = (self._random_set(rng) for _ in range(max(_RANDOM_SETS, 4 * draws)))
        return list({frozenset(members(s)): s for s in drawn if s is not None}.values())

    def near_sets(self, target: Floats, scale: Floats, draws: int, rng: np.random.Generator) -> list[Groups]:
        """Return different sets near `target`, the logarithms of the quantities; what differs is divided by `scale`.

        From random sets, one expert at a time is exchanged for one that brings the set nearer, until it is close in
        every quantity or no exchange helps. The sets passed on the way are returned too.
        """
        found: dict[frozenset[int], Groups] = {}
        close = 0
        for _ in range(_STARTS * draws):
            start = self._random_set(rng)
            for groups, is_close in self._improved(start, target, scale, rng) if start else ():
                new = frozenset(members(groups)) not in found
                found.setdefault(frozenset(members(groups)), groups)
                close += new and is_close
            if close >= draws:
                break
        return list(found.values())

    def _improved(
        self, start: Groups, target: Floats, scale: Floats, rng: np.random.Generator
    ) -> Iterator[tuple[Groups, bool]]:
        """Yield the sets on the way from a set to a near one, and whether each is close."""
        flat = self.quantities.reshape(-1, self.quantities.shape[-1])
        groups = [list(g) for g in start]
        places = [(g, m) for g, group in enumerate(groups) for m in range(len(group))]
        best = np.inf
        for at in [places[i] for _ in range(_SWEEPS) for i in rng.permutation(len(places))]:
            g, m = at
            others = [e for i, group in enumerate(groups) for j, e in enumerate(group) if (i, j) != at]
            allowed = self._allowed((groups[g][m],), others, fixed=self.same_layers or len(groups[g]) > 1)
            totals = flat[others].sum(0) + flat[allowed]
            off = np.abs(np.log(np.maximum(totals, 1e-9)) - target) / scale
            near = np.flatnonzero((off <= _CLOSE).all(1))
            choice = int(rng.choice(near)) if len(near) else int(np.linalg.norm(off, axis=1).argmin())
            if np.linalg.norm(off[choice]) >= best:
                continue
            best = float(np.linalg.norm(off[choice]))
            groups[g][m] = int(allowed[choice])
            yield tuple(tuple(sorted(group)) for group in groups), bool(len(near))
            if len(near):
                return

    def _random_set(self, rng: np.random.Generator) -> Groups | None:
        """Draw a set; None where a layer is drawn that has too few experts left."""
        n_layers, n_experts = self.quantities.shape[:2]
        taken: list[int] = []
        drawn: list[tuple[int, ...]] = []
        for group in self.changed:
            layer = group[0] // n_experts if self.same_layers else int(rng.integers(n_layers))
            free = self._allowed((layer * n_experts,), taken, fixed=True)
            if len(free) < len(group):
                return None
            drawn.append(tuple(sorted(free[rng.permutation(len(free))[: len(group)]].tolist())))
            taken += drawn[-1]
        return tuple(drawn)

    def _allowed(self, group: Sequence[int], taken: Sequence[int], fixed: bool | None = None) -> NDArray[np.int64]:
        """Return the experts that a group may take, of its own layer if `fixed`, without changed and taken ones."""
        n_layers, n_experts = self.quantities.shape[:2]
        fixed = self.same_layers if fixed is None else fixed
        free = np.ones(n_layers * n_experts, bool)
        if fixed:
            start = group[0] // n_experts * n_experts
            free[:start], free[start + n_experts :] = False, False
        free[members(self.changed)] = False
        free[list(taken)] = False
        return np.flatnonzero(free)


def members(groups: Groups) -> list[int]:
    """Return the experts of a set."""
    return [e for group in groups for e in group]
