"""The pages name what is there: files, links, and no package that an index would have to have."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(page for top in FOLDERS for page in top.rglob("*.md"))]
    if path.name != "CHANGELOG.md"  # tells of what was
)
SUFFIXES = "css|html|json|lock|lua|mako|md|py|sh|sql|toml|txt|yaml|yml"
PATH = re.compile(rf"(?:[\w.*-]+/)*[\w.*-]+\.(?:{SUFFIXES})")
FOLDER = re.compile(rf"(?:{'|'.join(re.escape(path.name) for path in FOLDERS)})(?:/[\w.*-]+)*/?")
MODULE = re.compile(r"(?:aios_\w+|benchmarks)(?:\.\w+)+")
KINDS = ("js", "json", "python", "sh", "sql", "text", "toml", "yaml")
BENCHMARK_LINE = r"^((?:\./aios bench|(?:\.aios/venv/bin/)?python(?: -m)?) [\w./]+)(.*)$"
# Of a model's folder, of a state folder, and of examples that write files.
ELSEWHERE = {
    "chat_template.jinja",
    "args.json",
    "config.json",
    "cores.toml",
    "generation_config.json",
    "kernel.json",
    "opencode.json",
    "notes/today.md",
    "plan.md",
    "rivers.py",
    "run.json",
    "script.py",
    "storage/notes/today.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "tool-secrets.toml",
    "tool.toml",
    "tools.toml",
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def words_of(page: str) -> set[str]:
    """Return the words that a page sets in backticks, outside its longer examples."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    return {word.rstrip(",;:") for code in re.findall(r"`([^`]+)`", text) for word in code.split()}


def is_there(path: str, page: str) -> bool:
    """Is it a path from the root, from the page, or the end of one path and no other?

    A name without a folder may be that of several files: `config.py`, `operations.py`.
    """
    if any(True for base in (ROOT, (ROOT / page).parent) for _ in base.glob(path)):
        return True
    named = [found for top in FOLDERS for found in top.rglob(path.rpartition("/")[2])]
    ends = [found for found in named if found.match(f"*/{path}")]
    return len(ends) == 1 or (len(ends) > 1 and ("/" not in path or "*" in path))


def is_module(name: str) -> bool:
    """Is it a module of ours, or something that a module of ours defines?"""
    path = name.replace(".", "/")
    if any(any(ROOT.glob(f"{top}{path}{end}")) for top in ("", "*/") for end in (".py", "")):
        return True
    holder, _, attribute = path.rpartition("/")
    files = [*ROOT.glob(f"*/{holder}.py"), *ROOT.glob(f"*/{holder}/__init__.py")]
    return any(re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    words = words_of(page) - ELSEWHERE
    paths = {word for word in words if PATH.fullmatch(word) or FOLDER.fullmatch(word)}
    modules = {word for word in words - paths if MODULE.fullmatch(word)}

    assert sorted(path for path in paths if not is_there(path, page)) == []
    assert sorted(module for module in modules if not is_module(module)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(page))
    ours = [link for link in links if not link.startswith(("http:", "https:"))]

    assert [link for link in ours if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_asks_an_index_for_a_package_that_it_has_not(page: str) -> None:
    """This project is on none: it is installed from a checkout, or from a wheel built of one."""
    asked = re.findall(
        r"(?:pip|uv|uvx|pipx) +(?:install|add|run)?[^`\n]*aios-broker", text_of(page)
    )

    assert asked == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_fenced_and_says_its_kind(page: str) -> None:
    """Blocks of shell and Python are run as they stand; by what kind they are they are found."""
    text = text_of(page)
    opened = re.findall(r"^ *```(.*)\n(?:.*\n)*?^ *```$", text, re.MULTILINE)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^|(?<=\n\n))(?: {4}|\t)\S.*", outside)

    assert [kind for kind in opened if kind not in KINDS] == []
    assert indented == []
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert re.findall(r"^\$ .*", shell, re.MULTILINE) == []  # a prompt cannot be pasted


@pytest.mark.parametrize("page", ["docs/how-to-benchmark.md", "docs/how-to-chaos.md"])
def test_options_of_benchmarks_are_theirs(page: str) -> None:
    """They take minutes, so they are not run: what a page says that they take they know."""
    lines = re.findall(BENCHMARK_LINE, text_of(page), re.MULTILINE)
    unknown = []
    for command, options in lines:
        name = command.split()[-1].removesuffix(".py").replace(".", "/")
        name = name if name.startswith("benchmarks/") else f"benchmarks/{name}"
        found = [*ROOT.glob(f"{name}.py"), *(ROOT / name).glob("*.py")]
        source = "".join(file.read_text(encoding="utf-8") for file in found)
        told = options.partition("#")[0]
        unknown += [
            (command, option)
            for option in re.findall(r"--[\w-]+", told)
            if f'"{option}"' not in source
        ]
        assert found, command
    assert lines
    assert unknown == []


def test_what_is_not_there_is_found_out() -> None:
    assert is_there("config.py", "README.md")
    assert is_there("queues/lua/submit.lua", "README.md") or is_there("submit.lua", "README.md")
    assert not is_there("store/tables.py", "README.md")
    assert not is_there("nothing.py", "README.md")
    assert is_module("aios_sdk.agent.Agent")
    assert not is_module("aios_sdk.agent.Nobody")
    assert not is_module("aios_sdk.nowhere")
