"""Lesions: what each block of a network is worth, by taking it (or a part of it) away and looking at the answer."""
