"""When a lesion counts as changing nothing: the thresholds, all ours, which every report states.

They are shares of what the network says about an image: where its answers tell images apart by less than one nat,
or its features by less than a right angle, the lines lie lower in proportion.
"""

from __future__ import annotations

from deepvit.collapse.lesions.effects import Effect, Lesions

# One block: it is idle when the answer moves by less than this (nats; 1 - cosine over that of two images).
IDLE = 0.02
# Several blocks together, or an early end: the answer is kept when it moves by less than this,
TOGETHER = 0.05
# and no more of the images than this change their first answer,
CHANGED = 0.01
# and, with labels, accuracy or mIoU falls by no more points than this.
POINTS = 0.5
# A block does harm when cross-entropy falls by this share of a nat and by so many standard errors without it.
HARM, HARM_ERRORS = 0.02, 3.0
# Below this the network says the same about every image, and no lesion can show anything.
TELLS_NOTHING = 1e-3

STATED = {
    "idle": IDLE,
    "together": TOGETHER,
    "changed_answers": CHANGED,
    "points_of_score": POINTS,
    "harm": HARM,
}


def scale(found: Lesions) -> float:
    """What one unit of the lines is for this network."""
    return min(1.0, found.told_apart)


def believed(found: Lesions | None) -> bool:
    """Whether there are lesions to judge by."""
    return bool(
        found is not None and not found.failed and found.effects and found.told_apart >= TELLS_NOTHING
    )


def is_idle(found: Lesions, effect: Effect) -> bool:
    """Whether a lesion of one block changes nothing."""
    return effect.value <= IDLE * scale(found) and _answers_stay(found, effect)


def keeps_answer(found: Lesions, effect: Effect) -> bool:
    """Whether the answers are kept with several blocks gone."""
    return effect.value <= TOGETHER * scale(found) and _answers_stay(found, effect)


def _answers_stay(found: Lesions, effect: Effect) -> bool:
    # One image of a small sample may change whatever is done: its share then says little. Of a dense output pixels are
    # counted, and a few images have thousands.
    few = found.images < 1 / CHANGED and found.task != "dense"
    slack = 1 / max(1, found.images) if few else CHANGED
    if effect.changed is not None and effect.changed > slack:
        return False
    return (
        found.score is None
        or effect.score is None
        or found.score - effect.score <= max(POINTS, 100 * (slack - CHANGED))
    )


def does_harm(effect: Effect) -> bool:
    """Whether the network answers better without: by its labels' cross-entropy, beyond chance."""
    return (
        effect.loss is not None
        and effect.loss_error is not None
        and effect.loss <= -HARM
        and -effect.loss > HARM_ERRORS * effect.loss_error
    )
