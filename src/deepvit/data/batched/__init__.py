"""Whole batches by key: the keyed loader, and the path of small sets that are kept in memory.

Kept apart because libraries have neither: torchvision and kornia draw one set of augmentation parameters a batch, not an
image, and a stateful loader cannot hand out batch 7 of epoch 3 without the six before it.
"""
