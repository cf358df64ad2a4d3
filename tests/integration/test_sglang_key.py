"""The key of an SGLang server that a worker starts: the server reads it, and nobody else."""

import tempfile
from pathlib import Path

import pytest

from aios_broker.contract.errors import CoreError
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.sglang.sglang_core import SGLangCore

KEY = "sk-only-the-server-reads-it"
# In place of a Python with sglang: notes how it was called, says its key, as its log might, dies.
STAND_IN = """#!/bin/sh
echo "$@" > "{folder}/arguments"
while [ "$1" != --config ]; do shift; done
cat "$2" > "{folder}/config"
stat -c %a "$2" > "{folder}/mode"
echo "server_args: api_key={key}"
exit 1
"""


async def test_a_server_of_our_own_is_not_given_its_key_as_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(folder=tmp_path, key=KEY))
    python.chmod(0o700)
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(passing))
    log = tmp_path / "server.log"
    core = SGLangCore(
        SGLangConfig(model="/models/none", api_key=KEY, python=str(python), log_path=log)
    )

    with pytest.raises(CoreError) as caught:
        await core.start()
    await core.close()

    assert KEY not in (tmp_path / "arguments").read_text()
    assert KEY in (tmp_path / "config").read_text()
    assert (tmp_path / "mode").read_text().strip() == "600"
    assert not list(passing.iterdir())
    assert "server_args" in str(caught.value)
    assert KEY not in str(caught.value)
