"""DFR on pseudo-groups: label x whether a biased model is right.

The idea of groups out of the held-out mistakes of a twin is of Pezeshki, Bouchacourt, Ibrahim,
Ballas, Vincent, Lopez-Paz, "Discovering Environments with XRM", 2023. The twin here is the pool's
ERM model of the next seed, and the samples are validation's, which neither has been trained on;
where the pool has one model, its own mistakes. Labels used: classes.
"""

from __future__ import annotations

from dataclasses import replace

from agrekd_ray.teachers.dfr import DfrSettings, dfr
from agrekd_ray.teachers.kinds import Half, HeldOut, Layer, debiased


class PseudoSettings(DfrSettings):
    """How a last layer is retrained on pseudo-groups; see `teachers.dfr`.

    Attributes:
        inverse_penalties: the values of C (inverse strength of the L1 penalty) that are tried;
            the selection half of validation decides, by the accuracy of the worst pseudo-group.
        retrainings: subsamples balanced by pseudo-group, whose coefficients are averaged.
        batches: `{}` or a block trains the layer on batches balanced by pseudo-group, and the two
            keys above do nothing; null averages regressions.
    """


def _grouped(half: Half) -> Half:
    return replace(half, groups_N=half.cells, evaluated_N=half.cells)


@debiased("pseudo", "pseudo-DFR", PseudoSettings, has_twin=True)
def pseudo(held_out: HeldOut, settings: PseudoSettings, seed: int) -> Layer:
    """The last layer that DFR makes of pseudo-groups; arguments and errors as `dfr`."""
    return dfr(
        replace(
            held_out,
            fit=_grouped(held_out.fit),
            load_select=lambda: _grouped(held_out.select),
        ),
        settings,
        seed,
        "pseudo",
    )
