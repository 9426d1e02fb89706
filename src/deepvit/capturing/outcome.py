"""What a capture ends with: a refusal in one line where the result lacks what was asked for, else remarks."""

from __future__ import annotations

from collections.abc import Mapping

from deepvit.capturing.options import Options
from deepvit.capturing.seen import Seen
from deepvit.errors import UserError


def require_result(seen: Seen, options: Options, over_channels: Mapping[str, tuple[str, int]]) -> None:
    """Raise ``UserError`` where nothing was captured, or not what was asked for.

    ``over_channels``: the blocks whose maps are over channels, with the attention's name and its rows.
    """
    if not seen.forwards:
        raise UserError("the model was not called inside the with block of capture")
    has_maps = {layout.block for layout in seen.layout.values()}
    if any(block not in has_maps for block in over_channels):
        raise UserError(_channels(seen, over_channels, has_maps))
    if silent := [name for name in options.names if name not in seen.blocks]:
        raise UserError(
            f"blocks: {', '.join(silent)} had no attention; without blocks= all that have are found"
        )
    if not seen.blocks:
        reasons = "; ".join(f"{s.module or 'the model'}: {s.reason} {s.shape}" for s in seen.skipped[:3])
        raise UserError(
            "no attention over tokens was found in this model"
            + (f" (seen and left out: {reasons})" if reasons else "")
            + ": it has none, or keeps it in compiled code or a kernel of its own"
        )
    if beyond := sorted(n for n in options.numbers if n >= len(seen.blocks)):
        raise UserError(
            f"blocks: {', '.join(map(str, beyond))} had no attention; the model's attention blocks are "
            f"0 to {len(seen.blocks) - 1}: {seen.blocks[0]} to {seen.blocks[-1]}"
        )
    if options.attention and not seen.layout:
        reasons = "; ".join(f"{s.module}: {s.reason}" for s in seen.skipped[:3])
        raise UserError(f"attention was seen and could not be captured: {reasons}")


def _channels(seen: Seen, over_channels: Mapping[str, tuple[str, int]], has_maps: set[str]) -> str:
    owner, rows = next(own for block, own in over_channels.items() if block not in has_maps)
    what = f"{owner}: its attention maps are over channels ({rows} x {rows} in each head), not over tokens"
    others = [n for n, name in enumerate(seen.blocks) if name in has_maps]
    if not others:
        return f"{what}: they cannot be measured, and no other attention was seen; choose another model"
    listed = ",".join(map(str, others))
    return f"{what}: they cannot be measured; choose the blocks over tokens by blocks={others} (--blocks {listed})"


def notes_of(seen: Seen) -> list[str]:
    """One remark for each reason why blocks have no patch grid, or one that is not sure."""
    told = [(x.block, x.key_grid, x.sure, x.decided) for x in seen.layout.values()]
    told += [(x.block, x.grid, x.sure, x.decided) for x in seen.token_layout.values()]
    blocks: dict[tuple[str, str], list[str]] = {}
    for block, grid, sure, decided in told:
        if grid is None and sure and ("are prefix tokens" in decided or "one token" in decided):
            continue
        if grid is None or not sure:
            what = "no patch grid" if grid is None else "the patch grid is not sure"
            named = blocks.setdefault((what, decided), [])
            if block not in named:
                named.append(block)
    return [
        f"{named[0]}{f' and {len(named) - 1} more' if len(named) > 1 else ''}: {what}: {why}"
        for (what, why), named in blocks.items()
    ]
