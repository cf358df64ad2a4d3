"""The mutants of the HTTP API's border: who comes in, whose syscalls are seen, what is told."""

from tests.mutants.catalogue import Mutant

SYSCALLS_TEST = "tests/integration/test_api_syscalls.py"
BORDER_TEST = "tests/integration/test_api_border.py"
PROCESS_TEST = "tests/integration/test_api_process.py"
PROBLEMS_TEST = "tests/unit/test_problems.py"
BODIES = "kernel_api/aios_kernel_api/bodies.py"
BORDER = "kernel_api/aios_kernel_api/border.py"
IDENTITY = "kernel_api/aios_kernel_api/identity.py"
KERNEL = "kernel_api/aios_kernel_api/kernel.py"
PROBLEMS = "kernel_api/aios_kernel_api/problems.py"
SERVER = "kernel_api/aios_kernel_api/server.py"
SYSCALLS = "kernel_api/aios_kernel_api/rest/syscalls.py"

API_MUTANTS = (
    Mutant(
        "an expired token opens the API",
        IDENTITY,
        "if identity is None or _is_over(identity.expires_at):",
        "if identity is None:",
        SYSCALLS_TEST,
    ),
    Mutant(
        "a suspended agent may ask the API",
        IDENTITY,
        "        await _refuse_suspended(caller, kernel)\n",
        "        pass\n",
        PROCESS_TEST,
    ),
    Mutant(
        "a key that stands twice is taken at the API",
        BODIES,
        "    refuse_shape(data)\n    refuse_ambiguous(data)\n",
        "    refuse_shape(data)\n",
        SYSCALLS_TEST,
    ),
    Mutant(
        "what waits for a person is told as queued",
        SYSCALLS,
        "[view] = await _standing(kernel, [syscall], [view])",
        "pass",
        SYSCALLS_TEST,
    ),
    Mutant(
        "everybody's syscalls are shown",
        KERNEL,
        "if live is not None and owner in (None, live.metadata.owner):",
        "if live is not None:",
        SYSCALLS_TEST,
    ),
    Mutant(
        "an address of a server is told",
        PROBLEMS,
        "    if not isinstance(error, Unavailable):\n",
        "    if isinstance(error, Unavailable):\n",
        PROBLEMS_TEST,
    ),
    Mutant(
        "a compressed body is read",
        BODIES,
        "    _refuse_encoded(request)\n",
        "",
        BORDER_TEST,
    ),
    Mutant(
        "what a request held is not given back",
        BODIES,
        "            self.free_bytes += share.size_bytes\n",
        "            pass\n",
        BORDER_TEST,
    ),
    Mutant(
        "an agent has as many requests open as it likes",
        BORDER,
        "        if self._open[owner] >= self._most:\n",
        "        if self._open[owner] < 0:\n",
        BORDER_TEST,
    ),
    Mutant(
        "a client that does not read is waited for",
        SERVER,
        "= self.loop.call_later(self._patience_s, self._reader_is_late)",
        "= None",
        BORDER_TEST,
    ),
    Mutant(
        "a reader's time begins anew with each piece",
        SERVER,
        "left_s = self._patience_s - (self.loop.time() - self._paused_s)",
        "left_s = self._patience_s",
        BORDER_TEST,
    ),
    Mutant(
        "a syscall ends when nobody waits for it",
        SYSCALLS,
        "    with kernel.holding(pending):\n        await pending.taken()\n",
        "    if pending:\n        await pending.taken()\n",
        PROCESS_TEST,
    ),
    Mutant(
        "requests of a connection are read ahead without end",
        SERVER,
        "if len(self.pipeline) > MAX_AHEAD:",
        "if False:",
        BORDER_TEST,
    ),
    Mutant(
        "chunks that hold nothing are read for ever",
        SERVER,
        "elif self._framing_bytes > MAX_FRAMING_BYTES:",
        "elif False:",
        BORDER_TEST,
    ),
    Mutant(
        "a request may have two tokens in two headers",
        IDENTITY,
        "given += [key for key in keys if key.startswith(PREFIX) and key not in given[0]]",
        "pass",
        SYSCALLS_TEST,
    ),
)
