"""All cures by name, in the order in which they are put in: replacements of attention before additions."""

from __future__ import annotations

from deepvit.cures import (
    attnscale,
    centred_attention,
    contranorm,
    differential_attention,
    featscale,
    layerscale,
    neutreno,
    qk_norm,
    reattention,
    registers,
    sigma_reparam,
    talking_heads,
    value_residual,
)
from deepvit.cures.registry import Cure

REGISTRY: dict[str, Cure] = {
    module.CURE.name: module.CURE
    for module in (
        reattention,
        talking_heads,
        differential_attention,
        layerscale,
        attnscale,
        centred_attention,
        featscale,
        neutreno,
        value_residual,
        contranorm,
        sigma_reparam,
        qk_norm,
        registers,
    )
}


def table() -> list[dict[str, str]]:
    """One row a cure: name, mechanism, whether it needs the maps and starts as the identity, source."""
    return [
        {
            "name": cure.name,
            "mechanism": cure.mechanism,
            "needs the maps": "yes" if cure.needs_maps else "no",
            "identity at start": "yes" if cure.identity_at_start else "no",
            "source": cure.source,
        }
        for cure in REGISTRY.values()
    ]
