"""``deepvit.push``: a run to a folder or a repository of Hugging Face's hub, in the form that timm loads."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from deepvit.errors import UserError
from deepvit.files import atomic_path, write_atomic, write_json
from deepvit.hubs.configuration import configuration
from deepvit.hubs.readme import readme
from deepvit.runs import ModelCard, load_deployed
from deepvit.runs.hugging_face import first_line

LOCAL, HUB = "local-dir", "hf-hub"
FILES = ("config.json", "model.safetensors", "model.json", "README.md")
"""All that is pushed: neither the options of the run nor its checkpoints, which name places on this machine."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        place: as timm names it: ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        files: names of the files.
        timm_reads: whether ``timm.create_model(place, pretrained=True)`` rebuilds the network.
        url: of the hub's page, of a repository.
    """

    place: str
    files: tuple[str, ...]
    timm_reads: bool
    url: str | None = None


def push(
    run: str,
    to: str | None = None,
    private: bool = False,
    license: str | None = None,
    message: str = "Model trained by deepvit",
) -> Pushed:
    """Put the deployed network of a run where timm loads it from, with a model card.

    Args:
        run: folder of a finished run.
        to: local-dir:FOLDER (a folder that is not there yet, or was pushed before) or hf-hub:OWNER/NAME.
        private: make the repository private, where it is new.
        license: of the weights, by the hub's name for it, as mit; by default the card says none.
        message: of the commit.

    Raises:
        UserError: no finished run, a place that cannot be written, a network whose files do not give it back.
    """
    if to is None:
        raise UserError("--to is needed: local-dir:FOLDER or hf-hub:OWNER/NAME")
    kind, colon, where = to.partition(":")
    if not colon or kind not in (LOCAL, HUB) or not where:
        raise UserError(f"--to {to!r} is no place: give local-dir:FOLDER or hf-hub:OWNER/NAME")
    if kind == HUB and where.count("/") != 1:
        raise UserError(f"--to {to!r}: a repository is hf-hub:OWNER/NAME")
    network, card = load_deployed(run)
    if kind == LOCAL:
        check_folder(Path(where))
    with tempfile.TemporaryDirectory() as temporary:
        timm_reads = lay_out(Path(run), network, card, Path(temporary), to, license)
        files = tuple(name for name in FILES if (Path(temporary) / name).exists())
        if kind == HUB:
            return Pushed(to, files, timm_reads, upload(Path(temporary), where, private, message))
        # A file of an earlier push that this one lacks would be read as if it belonged to it.
        for name in set(FILES) - set(files):
            (Path(where) / name).unlink(missing_ok=True)
        for name in files:
            with atomic_path(Path(where) / name) as target:
                shutil.copyfile(Path(temporary) / name, target)
    return Pushed(to, files, timm_reads)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier push."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is wanted")
    others = {entry.name for entry in folder.iterdir()} - set(FILES) if folder.is_dir() else set()
    if others:
        raise UserError(f"{folder} holds something else already ({sorted(others)[0]}): give another folder")


def lay_out(
    run: Path, network: nn.Module, card: ModelCard, folder: Path, place: str, license: str | None
) -> bool:
    """Write the files into an empty folder, and load them again as their reader will; returns whether timm does.

    Raises:
        UserError: what timm makes of them does not answer as the network does.
    """
    for name in ("model.safetensors", "model.json"):
        shutil.copyfile(run / name, folder / name)
    config = configuration(card, network)
    if config is not None:
        write_json(folder / "config.json", config)
        check_loads(network, card, folder)
    write_atomic(folder / "README.md", readme(run, card, network, place, config is not None, license))
    return config is not None


@torch.no_grad()
def check_loads(network: nn.Module, card: ModelCard, folder: Path) -> None:
    """Load a folder by timm's own function and compare the answers, bit for bit."""
    try:
        again: Any = timm.create_model(f"{LOCAL}:{folder}", pretrained=True).eval()
        height, width = card.input.hw
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        same = torch.equal(again(images), network(images))
    except Exception as error:  # whatever timm says of a configuration
        raise UserError(f"timm cannot load {card.arch} back from its files ({first_line(error)})") from None
    if not same:
        raise UserError(
            f"timm makes another network of {card.arch} than the run has, from its files: it is not pushed"
        )


def upload(folder: Path, repository: str, private: bool, message: str) -> str:
    """Put a folder into a repository of the hub, which is made where it is not there; its address.

    Raises:
        UserError: no access, no connection.
    """
    from huggingface_hub import HfApi  # timm brings it
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(library_name="deepvit")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=message,
            # The weights of an earlier push in another form would go before these.
            delete_patterns=["config.json", "*.bin", "*.safetensors"],
        )  # fmt: skip
    except LocalTokenNotFoundError:
        raise UserError("the hub does not know who you are: hf auth login, or HF_TOKEN") from None
    except Exception as error:  # of the hub, of its client in whichever version, of the network
        raise UserError(f"the hub does not take {repository} ({first_line(error)})") from None
    return str(url)
