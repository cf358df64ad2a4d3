"""What the page loads: files of others as their table says, ours without a foreign host."""

import hashlib
import re
from importlib.resources import files

from aios_kernel_api.page.html import environment, static_bytes
from aios_kernel_api.page.static import static_names
from aios_kernel_api.page.vendored import FOLDER, VENDORED

STATIC = files("aios_kernel_api.page") / "static"


def test_vendored_files_are_those_of_the_table() -> None:
    there = {each.name for each in (STATIC / FOLDER).iterdir()}
    assert there == {one.file for one in VENDORED} | {one.licence_file for one in VENDORED}
    for one in VENDORED:
        content = (STATIC / FOLDER / one.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.sha256, one.file
        assert one.version in one.file
        assert (STATIC / FOLDER / one.licence_file).read_bytes()


def test_our_files_name_no_other_host() -> None:
    for name in static_names():
        if not name.startswith(FOLDER) and not name.endswith(".svg"):
            assert not re.search(rb"//\w+[.:]", static_bytes(name)), name


def test_templates_have_no_script_and_no_style_of_their_own() -> None:
    for name in environment().list_templates():
        source, _, _ = environment().loader.get_source(environment(), name)  # type: ignore[union-attr]
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", source), name
        assert "|safe" not in source.replace(" ", ""), name
        environment().get_template(name)
