"""Uncompressed tars, read to their very end: what is damaged or cut off is refused, not left out."""

from __future__ import annotations

import contextlib
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deepvit.errors import UserError

BLOCK = tarfile.BLOCKSIZE


@contextlib.contextmanager
def whole_tar(archive: Path) -> Iterator[tuple[tarfile.TarFile, list[tarfile.TarInfo]]]:
    """An open tar and all its members, known to be whole.

    Python's ``tarfile`` ends its list at the first header that it cannot read, without a word; here the list must end at
    the marker that every writer puts at the end (two blocks of zeros), with nothing but zeros behind it.
    Raises ``UserError`` that names the tar, what is wrong and how many members are before it.
    """
    members: list[tarfile.TarInfo] = []
    try:
        with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = file.seek(0, 2)
            file.seek(0)
            try:
                for member in tar:
                    members.append(member)
                    _check_member(archive, member, members, size)
                _check_end(archive, file, tar.offset, members, size)
            except (tarfile.TarError, ValueError, EOFError) as error:
                if isinstance(error, UserError):
                    raise
                raise _damaged(archive, f"{error or type(error).__name__}", members) from None
            yield tar, members
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{archive} is not a readable uncompressed tar ({reason}); make one by `tar cf`"
        ) from error


def extents_of(archive: Path, wanted: frozenset[str]) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every file in a tar whose ending (".png") is in ``wanted``, by its path.

    Hidden files are left out; links stand for the file that they name. Raises ``UserError`` as ``whole_tar``, and for sparse
    files and for links to nothing.
    """
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with whole_tar(archive) as (_, members):
        for member in members:
            name = _clean(member.name)
            if member.islnk():
                links[name] = _clean(member.linkname)
            elif member.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.isfile():
                if member.issparse() and posixpath.splitext(name)[1].lower() in wanted:
                    raise UserError(
                        f"{name} in {archive} is stored as a sparse file; make the tar without --sparse"
                    )
                files[name] = (member.offset_data, member.size)
    chosen: dict[str, tuple[int, int]] = {}
    for name in (*files, *links):
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or posixpath.splitext(name)[1].lower() not in wanted:
            continue
        place, steps = name, 0
        while place in links and place not in files and steps < len(links):
            place, steps = links[place], steps + 1
        if place not in files:
            raise UserError(
                f"{name} in {archive} is a link to {links[name]}, which is not there; add it or take the link out"
            )
        chosen[name] = files[place]
    return chosen


def _clean(name: str) -> str:
    return name.removeprefix("./")


def _check_member(archive: Path, member: tarfile.TarInfo, members: list[tarfile.TarInfo], size: int) -> None:
    end = member.offset_data + (member.size if member.isfile() and not member.issparse() else 0)
    if end > size:
        raise UserError(
            f"{archive} is cut off: its member {member.name} should end at byte {end:,} and the file at {size:,}; "
            f"copy or make it again ({len(members) - 1} members before it are whole)"
        )


def _check_end(
    archive: Path, file: IO[bytes], offset: int, members: list[tarfile.TarInfo], size: int
) -> None:
    """The list has ended at ``offset``: what stands there must be the end's marker."""
    file.seek(offset)
    marker = file.read(2 * BLOCK)
    if any(marker[:BLOCK]):
        raise _damaged(archive, f"the header at byte {offset:,} is none", members)
    if len(marker) < 2 * BLOCK or any(marker):
        if len(marker) == 2 * BLOCK:
            raise _damaged(archive, f"more follows a single block of zeros at byte {offset:,}", members)
        raise UserError(
            f"{archive} is cut off: it ends at byte {size:,} without the marker that ends a tar; copy or make it "
            f"again ({len(members)} members are there)"
        )
    while chunk := file.read(1 << 20):
        if any(chunk):
            raise _damaged(
                archive, f"more follows its end at byte {offset:,}, as when tars are joined by cat", members
            )


def _damaged(archive: Path, what: str, members: list[tarfile.TarInfo]) -> UserError:
    return UserError(
        f"{archive} is damaged: {what}; copy or make it again ({len(members)} members before that are whole)"
    )
