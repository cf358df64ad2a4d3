"""A process that writes KV states into a shared folder: run by tests, and killed by some.

    python tests/state_writer.py FOLDER MAX_BYTES REQUESTS STATES DATA_BYTES

It says `begun` when it has joined, and then the name of what happened to each state.
"""

import sys
from itertools import cycle, islice
from pathlib import Path

from aios_workers.llm.cores.llama.kv_state import KvState
from aios_workers.llm.cores.llama.state_folder import NoRoom, StateFolder

KEY = b"k" * 32


def state_of(request_id: str, tokens: int, data_bytes: int) -> KvState:
    """Return a state that follows from its arguments."""
    pattern = f"{request_id}/{tokens};".encode()
    data = (pattern * (data_bytes // len(pattern) + 1))[:data_bytes]
    return KvState(tuple(range(tokens)), data)


def main(folder: Path, max_bytes: int, requests: int, states: int, data_bytes: int) -> None:
    """Write states of some requests, one after the other."""
    opened = StateFolder.open(folder, KEY, max_bytes)
    say("begun")
    names = [f"request {number}" for number in range(requests)]
    for tokens, name in enumerate(islice(cycle(names), states), start=1):
        try:
            opened.write(opened.reserve(name, tokens), state_of(name, tokens, data_bytes))
        except (NoRoom, OSError) as error:
            say(f"{type(error).__name__} {getattr(error, 'errno', '')}")
        else:
            say("written")
    opened.close()


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))
