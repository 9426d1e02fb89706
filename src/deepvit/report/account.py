"""How a diagnosis was made, in sentences: joined from the facts that measuring left in the provenance."""

from __future__ import annotations

from deepvit.collapse.results import Measurements
from deepvit.report import lesion_words


def account(results: Measurements) -> list[str]:
    """What was measured on how many images, what was sampled, and what was left out."""
    facts = results.provenance
    plan, sampling = facts["plan"], facts["sampling"]
    rule = results.similar.rule
    lines = [
        f"Tokens were measured on {_images(facts['images'])}; attention on {facts['attention_images']} of them "
        f"({_every(plan['attention_every'])}), effective ranks on {_every(plan['rank_every'])}.",
        "Similarities are means over heads, tokens and images; the DeepViT paper does not say how it averages. "
        f"{rule[0].upper()}{rule[1:]}.",
        "Patch metrics leave out prefix tokens (class, distillation, registers). Feature similarity is with "
        "the last block that was measured.",
        f"CKA is debiased and rests on up to {plan['alignment_tokens']} patches, "
        f"{plan['alignment_per_image']} of each image.",
    ]
    if sampling["columns"]:
        count, keys = sampling["columns"]
        lines.append(
            f"Cross-layer and head similarity compare {count} of {keys} columns of each map: all "
            "prefix tokens, and patches evenly spaced."
        )
    else:
        lines.append("Cross-layer and head similarity compare all columns of each map (exact).")
    if sampling["patches"]:
        lines.append(f"Patch similarity compares {sampling['patches']} patches of each image, evenly spaced.")
    if sampling["map_rows"]:
        lines.append(f"The rank of maps is that of {sampling['map_rows']} of their rows, evenly spaced.")
    if any(block.kind == "windowed" for block in results.blocks):
        lines.append(
            "Windowed maps are compared with the nearest earlier block of the same windows, in windows "
            "without a mask."
        )
    if facts["skipped"]:
        found = "; ".join(f"{module}: {reason}" for module, reason in facts["skipped"][:3])
        lines.append(f"{len(facts['skipped'])} attentions or tokens were seen and not measured: {found}.")
    if any(block.mixed for block in results.blocks):
        lines.append(
            "Where heads are mixed, similarity, contrast and rank are of the mixed maps that multiply V; "
            "entropy and distance of the softmax maps, since signed maps have none."
        )
    if results.lesions is not None:
        lines += lesion_words.account(results.lesions)
    return [*lines, *facts["capture"]]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _every(step: int) -> str:
    return "all of them" if step == 1 else f"one in {step}"
