"""What the site has that no file under docs/ is: README, records, measurements, options of the commands, notebooks.

Loaded by mkdocs.yml. Each page keeps one source: what GitHub shows in its own place is read from there, its links made
those of the site.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
COPIED = (
    "records/*/*.md",
    "records/*/*.yaml",
    "records/**/*.png",
    "records/*.md",
    "benchmarks/results/*.md",
    "benchmarks/results/*.png",
)
ALONE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")
LEFT_OUT = ("records/*/table.md",)  # the same table stands in the README beside it


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Records and measurements that there are and that the navigation does not name."""
    results = next(entry["Results"] for entry in config.nav or [] if "Results" in entry)
    named = {page for entry in results if isinstance(entry, dict) for page in entry.values()}
    for pattern in ("records/*/README.md", "benchmarks/results/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            page = path.relative_to(ROOT).as_posix()
            if page not in named:
                results.append({path.read_text("utf-8").splitlines()[0].removeprefix("# "): page})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are made or live elsewhere."""
    add(files, config, "index.md", home())
    add(files, config, "commands.md", commands())
    add(files, config, "records/index.md", records())
    for name in ALONE:
        add(files, config, name, under_docs((ROOT / name).read_text("utf-8")))
    left_out = {path for pattern in LEFT_OUT for path in ROOT.glob(pattern)}
    for path in sorted(path for pattern in COPIED for path in ROOT.glob(pattern)):
        if path not in left_out and path != ROOT / "records" / "README.md":
            text = path.suffix in {".md", ".yaml"}
            content = under_docs(path.read_text("utf-8")) if text else path.read_bytes()
            add(files, config, path.relative_to(ROOT).as_posix(), content)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, pictures = notebook(path)
        add(files, config, f"notebooks/{path.stem}.md", text)
        for name, content in pictures.items():
            add(files, config, f"notebooks/{name}", content)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a guide to files beside docs/ (``../records/…``) are within the site; README.md of a folder is its page."""
    if "/" not in page.file.src_uri:
        markdown = markdown.replace("](../", "](")
    return markdown


def add(files: Files, config: MkDocsConfig, name: str, content: str | bytes) -> None:
    """One made file, in the place of one of that name."""
    old = files.get_file_from_path(name)
    if old is not None:
        files.remove(old)
    files.append(File.generated(config, name, content=content))


def under_docs(text: str) -> str:
    """A page from outside of docs/ with links to docs/ as the site has them."""
    return re.sub(r"(\]\(|src=\"|srcset=\")((?:\.\./)*)docs/", r"\1\2", text)


def home() -> str:
    """README is the first page; what the records come to is the page of their folder."""
    return under_docs((ROOT / "README.md").read_text("utf-8")).replace(
        "](records/README.md)", "](records/index.md)"
    )


def records() -> str:
    """records/README.md where there is one, and in any case each study in one line."""
    own = ROOT / "records" / "README.md"
    if own.exists():  # a study that is still to be done is named, without a page
        there = lambda link: link[0] if (own.parent / link[2]).exists() else link[1]  # noqa: E731
        return re.sub(r"\[([\w-]+)\]\(([\w-]+/README\.md)\)", there, own.read_text("utf-8"))
    lines = ["# What was measured", "", "Every study with its recipe, all seeds, and what it refutes:", ""]
    for path in sorted(ROOT.glob("records/*/README.md")):
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.parent.name}/README.md)")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its arguments and options, from what the help in the terminal is made of."""
    said: dict[str, dict[str, Any]] = json.loads((ROOT / "src/deepvit/commands/help.json").read_text("utf-8"))
    lines = [
        "# Commands and options", "",
        "What `deepvit COMMAND --help` says. Python's functions of the same names take the same options.", "",
    ]  # fmt: skip
    order = list(said)
    for name in sorted(said, key=lambda name: order.index(name.split()[0])):
        if any(other.startswith(f"{name} ") for other in said):  # said for each task
            continue
        command, _, task = name.partition(" ")
        told = said[name]
        lines += [f"## deepvit {command}{f' --task {task}' if task else ''}", "", told["text"], "", "```"]
        lines += [told["usage"].removeprefix("usage: "), *told["examples"], "```", ""]
        rows = [*([word, text, ""] for word, text in told["positional"]), *told["options"]]
        groups: dict[str, list[list[str]]] = {}
        for option, text, group in rows:
            groups.setdefault(group, []).append([f"`{option}`", text])
        for group, entries in groups.items():
            lines += [f"**{group[:1].upper()}{group[1:]}**", ""] if group else []
            lines += ["| option | |", "|---|---|"]
            lines += [
                "| " + " | ".join(cell.replace("|", "\\|") for cell in entry) + " |" for entry in entries
            ]
            lines.append("")
    return "\n".join(lines)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as it stands, with its results, as Markdown and pictures."""
    from nbconvert import MarkdownExporter

    text, more = MarkdownExporter().from_filename(str(path))
    pictures = {}
    for name, content in more["outputs"].items():
        pictures[f"{path.stem}-{name}"] = content
        text = text.replace(f"]({name})", f"]({path.stem}-{name})")
    note = f"*Made by running [{path.name}]({path.name}).*\n\n"
    text = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text.replace("](../../", "](../"))
    return text.replace("\n\n", f"\n\n{note}", 1), pictures
