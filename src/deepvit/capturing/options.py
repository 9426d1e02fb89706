"""What to capture, as the public function was asked."""

from __future__ import annotations

from dataclasses import dataclass

from deepvit.capturing.seen import AttentionConsumer, TokenConsumer


@dataclass(frozen=True)
class Options:
    """What to capture; the arguments of :func:`deepvit.capture`."""

    blocks: tuple[str, ...] | tuple[int, ...] | None
    attention: bool
    tokens: bool
    qkv: bool
    prefix_tokens: int | None
    on_attention: AttentionConsumer | None
    on_softmax: AttentionConsumer | None
    on_tokens: TokenConsumer | None
    on_mismatch: str

    @property
    def names(self) -> list[str]:
        """The blocks asked for by name."""
        return [b for b in self.blocks or () if isinstance(b, str)]

    @property
    def numbers(self) -> set[int]:
        """The blocks asked for by number."""
        return {b for b in self.blocks or () if isinstance(b, int)}
