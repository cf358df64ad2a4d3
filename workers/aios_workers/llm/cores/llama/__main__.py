"""The core process: `python -m aios_workers.llm.cores.llama LOAD`; ends with its worker.

One loop: read what the worker says, step the engine, tell what came.
"""

import logging
import os
import select
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_workers.llm.constraint import Compiler, Matcher
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.llama.engine import Engine
from aios_workers.llm.cores.llama.library import Library
from aios_workers.llm.cores.llama.llama_context import (
    Context,
    Embedder,
    ProbeResult,
    open_context,
    state_token_bytes,
)
from aios_workers.llm.cores.llama.protocol import (
    Abort,
    Embed,
    Ended,
    FrameBuffer,
    Generate,
    Load,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    ShareStates,
    ToCore,
    encode_frame,
    write_all,
)
from aios_workers.llm.cores.llama.state_folder import StateFolder
from aios_workers.llm.cores.llama.state_store import NoStates, StateRule, StateStore, state_key
from aios_workers.llm.cores.llama.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

EXIT_REFUSED = 3
_READ_BYTES = 1 << 20
_LOOK_AGAIN_S = 0.05  # at what the writer of KV states has done, while it works


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model, say so, and serve until standard input ends."""
    [load] = sys.argv[1:] if arguments is None else arguments
    settings = msgspec.json.decode(load, type=Load)
    exact = all(shape.grade == "exact" for shape in settings.shapes)
    input_fd, output_fd = _take_standard_streams()
    began = time.monotonic()
    try:
        library = Library.load(exact=exact)
        model = library.load_model(
            Path(settings.weights),
            vocab_only=False,
            gpu_layers=settings.gpu_layers,
            repack=not exact,
        )
        load_ms = (time.monotonic() - began) * 1_000
        context, found = open_context(library, model, settings.shapes)
    except KernelError as error:
        write_all(output_fd, encode_frame(Refused(error.to_wire())))
        return EXIT_REFUSED
    ready = Ready(
        library.system_info,
        context.shape,
        found.exact_resume,
        found.cost_ms,
        load_ms,
        state_token_bytes(context),
    )
    write_all(output_fd, encode_frame(ready))
    _Server(library, context, found, settings.state_budget_bytes).serve(input_fd, output_fd)
    context.close()
    return 0


class _Server:
    """One model's engine and embedder, and the worker that asks them."""

    def __init__(
        self, library: Library, context: Context, found: ProbeResult, state_budget_bytes: int
    ) -> None:
        self._library = library
        self._context = context
        self._found = found
        self._compiler: Compiler | None = None
        self._engine = Engine(
            context,
            state_budget_bytes=state_budget_bytes,
            start_matcher=self._start_matcher,
            prefill_ms_per_token=found.prefill_ms_per_token,
        )
        self._embedder = Embedder(library, context)
        # The forms of answers are compiled in a thread, and the tokens of others go on meanwhile.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aios-forms")
        self._forms: dict[int, tuple[Generate, Future[Matcher]]] = {}  # by stream
        self._waker, self._wake = os.pipe()

    def serve(self, input_fd: int, output_fd: int) -> None:
        """Serve until the worker closes its end, which it also does by dying."""
        buffer = FrameBuffer()
        told = self._engine.shared.counts
        try:
            while True:
                if self._has_input(input_fd):
                    data = os.read(input_fd, _READ_BYTES)
                    if not data:
                        break
                    for message in buffer.feed(data):
                        self._handle(message, output_fd)
                self._submit_compiled()
                for source in (self._engine, self._embedder):
                    if source.busy:
                        write_all(output_fd, encode_frame(Progress(source.step())))
                counts = self._engine.shared.counts
                if counts != told:
                    told = counts
                    write_all(output_fd, encode_frame(counts))
        except BrokenPipeError:
            return
        finally:
            self._thread.shutdown(cancel_futures=True)  # it reads the model's vocabulary
            self._engine.close()
            self._embedder.close()

    def _has_input(self, input_fd: int) -> bool:
        """Whether there is something to read; waits for it where there is nothing else to do.

        A form that has been compiled ends the waiting.
        """
        limit_s = _LOOK_AGAIN_S if self._engine.shared.busy else None
        if self._engine.busy or self._embedder.busy:
            limit_s = 0
        ready, _, _ = select.select([input_fd, self._waker], [], [], limit_s)
        if self._waker in ready:
            os.read(self._waker, _READ_BYTES)
        return input_fd in ready

    def _handle(self, message: ToCore, output_fd: int) -> None:
        match message:
            case Generate() if message.constraint is not None:
                self._compile(message, message.constraint)
            case Generate():
                self._engine.submit(message)
            case Abort() if message.stream in self._forms:
                del self._forms[message.stream]
                write_all(output_fd, encode_frame(Progress((Ended(message.stream),))))
            case Abort():
                self._engine.abort(message.stream, keep=message.keep)
                self._embedder.abort(message.stream)
            case Embed():
                self._embedder.submit(message)
            case Ping():
                write_all(output_fd, encode_frame(Pong(message.number)))
            case ShareStates():
                self._engine.shared = self._open_states(message)

    def _open_states(self, message: ShareStates) -> NoStates:
        """Join the cores that share a folder; where that fails, go on without.

        The worker has refused a folder that cannot be used when it started: this one went bad
        later.
        """
        shape, found = self._context.shape, self._found
        key = state_key(message.fingerprint, shape, exact_resume=found.exact_resume)
        try:
            folder = StateFolder.open(Path(message.folder), key, message.max_bytes)
        except InvalidConfig as error:
            logger.warning("no KV states are shared: %s", error)
            return NoStates()
        return StateStore(folder, StateRule(found.prefill_ms_per_token))

    def _compile(self, message: Generate, constraint: Constraint) -> None:
        """Have a form compiled; its generation begins then."""
        future = self._thread.submit(self._start_matcher, constraint, message.resume_ids)
        self._forms[message.stream] = message, future
        future.add_done_callback(lambda _: os.write(self._wake, b"1"))

    def _submit_compiled(self) -> None:
        for stream, (message, future) in list(self._forms.items()):
            if future.done():
                del self._forms[stream]
                self._engine.submit(message, lambda *_, made=future: made.result())

    def _start_matcher(self, constraint: Constraint, output_ids: Sequence[int]) -> Matcher:
        """Start a matcher. The first one costs about 0.3 s: the table of all tokens."""
        if self._compiler is None:
            # Shares the model with the context, which frees it.
            self._compiler = Vocabulary(self._library, self._context.model).compiler()
        return self._compiler.start(constraint, output_ids)


def _take_standard_streams() -> tuple[int, int]:
    """Keep the frames' descriptors to ourselves: what a library prints goes to standard error."""
    input_fd, output_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return input_fd, output_fd


if __name__ == "__main__":
    sys.exit(main())
