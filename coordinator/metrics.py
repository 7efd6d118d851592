"""Metrics over the score matrix R, each as the paper that uses it defines it.

R[i, j] is the score on column j after row i's visit; a cell that does not exist is NaN. `overall` takes R itself.
All others take S = `in_visiting_order(R, order)`, the [K, K] part of R over the K visited sites in visiting order, so
that S's diagonal holds every site's score right after its own visit. A metric is None where it is undefined: too few
visits, or one of the cells it needs does not exist. None never turns into 0 and is never averaged over.

The papers: MAS-LR (Özgün et al. 2020), SMG (SMG-Learning), MS-ER (experience replay for MS lesions), C2GR, and GEM
(Lopez-Paz and Ranzato 2017), from which the signed BWT comes. Two contradictions between them, and our reading:

- SMG's "BWT" is MAS-LR's REM (all pairs, on the scale 1 = nothing forgotten); it stands under `rem`. `bwt` is GEM's
  and MS-ER's, signed and over the final row; `bwt_all_pairs` is signed and over all pairs, and equals
  `rem + bwt_plus - 1`.
- BWT+ is an improvement for DSC (MAS-LR, higher is better) but forgetting for a distance (SMG, lower is better).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Score = Literal["dsc", "asd"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Definition:
    """How a metric is presented: its short title, one plain line, its papers, and which direction is better."""

    title: str
    text: str
    papers: str
    dsc: Better = "higher"
    asd: Better | None = "lower"  # None: not defined for a distance

    def better(self, score: Score) -> Better | None:
        """Which direction is better for `score`; None where the metric is not defined for it."""
        return self.dsc if score == "dsc" else self.asd


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "overall": Definition(
            "Overall", "Mean score of the final model over all sites, unseen ones included.", "SMG, C2GR"
        ),
        "bwt": Definition(
            "BWT",
            "Final score minus the score right after a site's own visit, mean over all sites but the last.",
            "GEM, MS-ER",
        ),
        "bwt_all_pairs": Definition(
            "BWT, all pairs",
            "Score after a later visit minus the score right after a site's own visit, mean over all such pairs.",
            "REM + BWT+ - 1",
        ),
        "bwt_plus": Definition(
            "BWT+",
            "Only the rises among all pairs, falls counted as 0: improvement for DSC, forgetting for ASD.",
            "MAS-LR, SMG",
        ),
        "rem": Definition(
            "REM",
            "1 minus the falls among all pairs: 1 means that nothing was forgotten. SMG calls it BWT.",
            "MAS-LR, SMG",
            asd=None,
        ),
        "fwt": Definition("FWT", "Mean score on sites before the model has visited them.", "MAS-LR, SMG"),
        "tl": Definition(
            "TL", "Mean score right after each site's own visit: how well new sites are learnt.", "MAS-LR"
        ),
        "cl": Definition(
            "CL", "Mean score on sites visited so far, over all visits: learning and remembering.", "MAS-LR"
        ),
    }
)


def in_visiting_order(R: Matrix, order: Sequence[int]) -> Matrix:
    """The part of R over visited sites: float64 [K, K], column i being the site that row i visited.

    R: [K, columns]; order: the column that each row visited. Raises ValueError unless there is one distinct column of
    R for every row.
    """
    rows, columns = R.shape
    if len(order) != rows or len(set(order)) != rows or not all(0 <= column < columns for column in order):
        raise ValueError(f"order {list(order)} must name one distinct column for each of {rows} rows of {columns}.")
    return R[:, list(order)]


def overall(R: Matrix) -> float | None:
    """Mean of R's final row, unseen columns included (SMG; C2GR over its learnt tasks). DSC: higher; ASD: lower.

    A column without a score in any row is left out: no model of this run exists for it, as for the unseen sites of
    site-by-site training. Any other missing cell in the final row makes the metric None.
    """
    if len(R) == 0:
        return None
    return _mean(R[-1, ~np.isnan(R).all(axis=0)])


def bwt(S: Matrix) -> float | None:
    """1/(K-1) · Σ_{j<K} S[K,j] - S[j,j] (GEM, MS-ER): signed, final row. DSC: higher; ASD: lower is better."""
    return _mean(S[-1:, :-1] - S.diagonal()[:-1])


def bwt_all_pairs(S: Matrix) -> float | None:
    """Mean over all pairs j<i of S[i,j] - S[j,j], signed; equals rem + bwt_plus - 1. DSC: higher; ASD: lower."""
    return _mean(_changes(S))


def bwt_plus(S: Matrix) -> float | None:
    """Mean over all pairs j<i of max(S[i,j] - S[j,j], 0) (MAS-LR eq. 5, SMG eq. 11).

    DSC: improvement of past sites, higher is better. ASD: their forgetting, lower is better.
    """
    return _mean(np.maximum(_changes(S), 0.0))


def rem(S: Matrix) -> float | None:
    """Mean over all pairs j<i of 1 - |min(S[i,j] - S[j,j], 0)| (MAS-LR eq. 4; SMG eq. 10, there called BWT).

    For scores between 0 and 1 (DSC), higher is better. `evaluate` gives None for ASD, since no paper defines it and
    one minus a number of millimetres means nothing.
    """
    return _mean(1.0 - np.abs(np.minimum(_changes(S), 0.0)))


def fwt(S: Matrix) -> float | None:
    """Mean over all pairs j>i of S[i,j] (SMG; FT in MAS-LR's text): plain performance before the visit.

    Unseen sites are not in it. DSC: higher; ASD: lower is better.
    """
    return _mean(S[np.triu_indices(len(S), 1)])


def tl(S: Matrix) -> float | None:
    """Transfer learning: mean of the diagonal (MAS-LR, C2GR). DSC: higher; ASD: lower is better."""
    return _mean(S.diagonal())


def cl(S: Matrix) -> float | None:
    """Mean of the diagonal and all below it (MAS-LR's CL DSC). DSC: higher; ASD: lower is better."""
    return _mean(S[np.tril_indices(len(S))])


def bwt_by_site(R: Matrix, order: Sequence[int]) -> list[float | None]:
    """Per column j of R the final score minus that right after j's own visit: R[K,j] - R[j,j] (MS-ER, Table 1).

    R: [rows, columns]; order: the column that each row visited. Signed; the last site's is 0 by this definition, as in
    the paper; None for a column that no row visited or that lacks one of the two scores. DSC: higher is better.
    """
    row_of = {column: row for row, column in enumerate(order)}
    return [_mean(R[-1, j] - R[row_of[j], j]) if j in row_of else None for j in range(R.shape[1])]


def zero_shot(R: Matrix, order: Sequence[int]) -> list[float | None]:
    """Per row i the mean score over all columns that rows 1..i did not visit: sites the model has not seen yet.

    R: [rows, K], the columns of the sites that are visited, unseen ones left out; order: the column that each row
    visited. None where no column is left, as after the last visit. DSC: higher is better.
    """
    left = [[j for j in range(R.shape[1]) if j not in order[: i + 1]] for i in range(len(R))]
    return [_mean(R[i, columns]) for i, columns in enumerate(left)]


def all_sites(R: Matrix) -> list[float | None]:
    """Per row the mean score over all K columns, visited yet or not (as MS-ER's Fig. 2 reads). R: [rows, K]."""
    return [_mean(row) for row in R]


def gap_closed(value: float, floor: float, ceiling: float, better: Better) -> float | None:
    """(value - floor) / (ceiling - floor): 0 is fine-tuning, the floor, and 1 is joint training, the ceiling.

    None unless the ceiling is better than the floor: there is no gap to close then.
    """
    gap = ceiling - floor
    if gap == 0 or (gap > 0) != (better == "higher"):
        return None
    return (value - floor) / gap


def evaluate(R: Matrix, order: Sequence[int] | None, score: Score) -> dict[str, float | None]:
    """Every metric of DEFINITIONS over R, float64 [rows, columns]: DSC as fractions, ASD in mm.

    order: the column that each row visited, or None where a row stands for several sites at once (joint training, one
    model for all): there is no diagonal then, and all metrics but `overall` are None. Raises ValueError when `order`
    does not name one distinct column for each row.
    """
    values: dict[str, float | None] = dict.fromkeys(DEFINITIONS)
    values["overall"] = overall(R)
    if order is not None and len(R):
        S = in_visiting_order(R, order)
        values |= {f.__name__: f(S) for f in (bwt, bwt_all_pairs, bwt_plus, rem, fwt, tl, cl)}
    return {key: value if DEFINITIONS[key].better(score) else None for key, value in values.items()}


def _changes(S: Matrix) -> Matrix:
    """S[i,j] - S[j,j] for all pairs j<i."""
    return (S - S.diagonal())[np.tril_indices(len(S), -1)]


def _mean(values: Matrix | float) -> float | None:
    if np.size(values) == 0 or np.isnan(values).any():
        return None
    return float(np.mean(values))
