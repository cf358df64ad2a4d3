"""Chat templates that a package ships, of many families: rendered as transformers renders them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.queues.environment import peers_python
from tests.chat_renderings import rendered_alike

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = (
    "cohere2",
    "deepseekv3",
    "gemma3",
    "glm4moe",
    "gptoss",
    "lfm2",
    "llama3_1",
    "nemotron_3_nano",
    "phi3",
    "qwen2_5",
    "qwen3",
    "smolvlm",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the folder of the package's templates, installed by its hash."""
    into = Path(".aios") / "templates"
    python = peers_python(ROOT, print, lock="requirements-templates.lock", into=into)
    [found] = (python.parents[1] / "lib").glob("python*/site-packages/trl/chat_templates")
    return found


@pytest.mark.timeout(240)  # the first of them installs the package
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_template(folder: Path, family: str) -> None:
    assert rendered_alike((folder / f"{family}.jinja").read_text())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_template_of_the_package(folder: Path) -> None:
    sources = [each.read_text() for each in sorted(folder.glob("*.jinja"))]
    assert len(sources) >= len(FAMILIES)
    assert all(map(rendered_alike, sources))
