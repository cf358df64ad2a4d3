"""The core process: `python -m aios_workers.llm.cores.llama`. Started by a worker, ends with it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_workers.llm.cores.llama.context import MICRO_BATCH_TOKENS, Context, ContextShape
from aios_workers.llm.cores.llama.embedder import Embedder
from aios_workers.llm.cores.llama.engine import Engine
from aios_workers.llm.cores.llama.library import Library
from aios_workers.llm.cores.llama.matchers import Matchers
from aios_workers.llm.cores.llama.probe import ProbeResult, probe
from aios_workers.llm.cores.llama.protocol import Ready, Refused, ShareStates
from aios_workers.llm.cores.llama.serve import serve, write_frame
from aios_workers.llm.cores.llama.state_folder import StateFolder
from aios_workers.llm.cores.llama.state_rule import StateRule
from aios_workers.llm.cores.llama.state_store import (
    NoStates,
    StateKeeper,
    StateStore,
    state_key,
)

logger = logging.getLogger(__name__)

EXIT_REFUSED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model, say so, and serve until standard input ends."""
    options = _parser().parse_args(arguments)
    input_fd, output_fd = _take_standard_streams()
    began = time.monotonic()
    try:
        library = Library.load()
        context = Context.load(library, options.weights, _shape(options))
    except KernelError as error:
        write_frame(output_fd, Refused(error.to_wire()))
        return EXIT_REFUSED
    load_ms = (time.monotonic() - began) * 1_000
    found = probe(context)
    engine = Engine(
        context,
        state_budget_bytes=options.state_budget_bytes,
        start_matcher=Matchers(library, context).start,
    )
    ready = Ready(library.system_info, found.exact_resume, found.cost_ms, load_ms)
    write_frame(output_fd, ready)
    embedder = Embedder(library, context)

    def open_states(message: ShareStates) -> StateKeeper:
        return _open_states(message, context.shape, found)

    serve(engine, embedder, open_states, input_fd=input_fd, output_fd=output_fd)
    engine.close()
    embedder.close()
    context.close()
    return 0


def _open_states(message: ShareStates, shape: ContextShape, found: ProbeResult) -> StateKeeper:
    """Join the cores that share a folder; where that fails, go on without.

    The worker has refused a folder that cannot be used when it started: this one went bad later.
    """
    key = state_key(message.fingerprint, shape, exact_resume=found.exact_resume)
    try:
        folder = StateFolder.open(Path(message.folder), key, message.max_bytes)
    except InvalidConfig as error:
        logger.warning("no KV states are shared: %s", error)
        return NoStates()
    return StateStore(folder, StateRule(found.prefill_ms_per_token))


def _take_standard_streams() -> tuple[int, int]:
    """Keep the frames' descriptors to ourselves: what a library prints goes to standard error."""
    input_fd, output_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return input_fd, output_fd


def _shape(options: argparse.Namespace) -> ContextShape:
    return ContextShape(
        slots=options.slots,
        context_tokens=options.context_tokens,
        threads=options.threads,
        micro_batch_tokens=options.micro_batch_tokens,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aios_workers.llm.cores.llama", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=MICRO_BATCH_TOKENS)
    parser.add_argument("--state-budget-bytes", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
