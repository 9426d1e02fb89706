"""All cures by name. A new one is a file beside this one and a line in ``FILES``."""

from __future__ import annotations

from importlib import import_module

from deepvit.cures.cure import Cure
from deepvit.errors import UserError

# In the order in which they are put in and recommended: replacements of attention before additions to it, what
# changes values before what reads them, what removes blocks last.
FILES = (
    "reattention",
    "talking_heads",
    "twicing",
    "differential_attention",
    "value_residual",
    "attnscale",
    "centred_attention",
    "contranorm",
    "neutreno",
    "featscale",
    "mv_split",
    "layerscale",
    "orthogonal_residual",
    "depth_scaled_norm",
    "qk_norm",
    "sigma_reparam",
    "gated_attention",
    "registers",
    "test_time_registers",
    "cut",
)

CURES: dict[str, Cure] = {}


def register(cure: Cure) -> Cure:
    """Add a cure to those that ``apply``, ``--cures``, lists and reports know; returns it.

    A network with a cure of your own is rebuilt from its record only where the cure is registered again. Raises
    UserError for a name that is taken.
    """
    if cure.name in CURES:
        raise UserError(f"there is a cure {cure.name!r} already; give yours another name")
    CURES[cure.name] = cure
    return cure


for _file in FILES:
    register(import_module(f"deepvit.cures.{_file}").CURE)


def answering(finding: str) -> list[tuple[str, str]]:
    """Cures that answer a kind of finding of a collapse report, as (name, how), in the order to try them."""
    return [(cure.name, cure.answers[finding]) for cure in CURES.values() if finding in cure.answers]


def table() -> list[dict[str, str]]:
    """One row a cure, for lists and the guide: mechanism, what it helps with, its place in a block, whether timm's fused
    attention stays, what it does to trained weights at the start, source."""
    return [
        {
            "name": cure.name,
            "mechanism": cure.mechanism,
            "helps with": cure.helps,
            "place in a block": ", ".join(sorted(cure.slots)),
            "fused attention": "replaced" if cure.needs_maps else "kept",
            "start on trained weights": "identity" if cure.identity_at_start else "changes the function",
            "source": cure.source,
        }
        for cure in CURES.values()
    ]
