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
SESSION = "kernel_api/aios_kernel_api/rest/session.py"
ROOM = "kernel_api/aios_kernel_api/room.py"
ROOM_TEST = "tests/unit/test_room.py"
TURNS_TEST = "tests/integration/test_api_turns.py"
BOUNDS_TEST = "tests/integration/test_api_bounds.py"

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
        "value = read_once_each(data)",
        "value = msgspec.json.decode(data)",
        SYSCALLS_TEST,
    ),
    Mutant(
        "a key that stands twice is taken in a syscall of a session",
        SESSION,
        "        refuse_duplicate_keys(data)\n",
        "        pass\n",
        TURNS_TEST,
    ),
    Mutant(
        "a key that stands twice is taken in a message of a session",
        SESSION,
        "        refuse_dropped(data, msgspec.json.decode(data, type=_PLAIN[kind]))\n",
        "",
        TURNS_TEST,
    ),
    Mutant(
        "bodies take no turn",
        BODIES,
        'await progress.before(times * getattr(request.state, "weight", 0))',
        "pass",
        TURNS_TEST,
    ),
    Mutant(
        "bodies of the gateway take no turn",
        "kernel_api/aios_kernel_api/gateway/asking.py",
        "    async with in_turn(request):\n        left_out",
        "    if True:\n        left_out",
        TURNS_TEST,
    ),
    Mutant(
        "whoever has no token sends a form of any size",
        "kernel_api/aios_kernel_api/page/login.py",
        "read_form(request, MAX_LOGIN_BYTES)",
        "read_form(request)",
        TURNS_TEST,
    ),
    Mutant(
        "one tenant takes all the room",
        ROOM,
        "return self._by_tenant[tenant] + size_bytes <= self.free_bytes - size_bytes",
        "return size_bytes <= self.free_bytes",
        ROOM_TEST,
    ),
    Mutant(
        "answers that are not read are never cut off",
        ROOM,
        "while not self.room.has(tenant, size_bytes) and self._cut_slowest(tenant):",
        "while False:",
        BOUNDS_TEST,
    ),
    Mutant(
        "the answer that is read is cut off",
        ROOM,
        "answer = next(iter(self._by_tenant.get(tenant, {})), None)",
        "answer = next(reversed(self._by_tenant.get(tenant, {})), None)",
        ROOM_TEST,
    ),
    Mutant(
        "an answer that is cut off goes on",
        "kernel_api/aios_kernel_api/border.py",
        "            abort()\n",
        "            pass\n",
        BOUNDS_TEST,
    ),
    Mutant(
        "a list keeps all results, whatever room there is",
        "kernel_api/aios_kernel_api/rest/syscall_lists.py",
        "self._share.fits(len(part))",
        "True",
        BOUNDS_TEST,
    ),
    Mutant(
        "the boxes of one tenant take the room of others",
        "kernel_api/aios_kernel_api/router.py",
        "elif not self._room.has(box.owner.tenant, 0):",
        "elif self._room.free_bytes < 0:",
        BOUNDS_TEST,
    ),
    Mutant(
        "what waits for a person is told as queued",
        SYSCALLS,
        "view = (await standing(kernel, {syscall.id: syscall.module})).get(syscall.id, view)",
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
        ROOM,
        "            self.add(tenant, -share.size_bytes)\n",
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
        "            held.enter_context(kernel.holding(pending))\n        await pending.taken()\n",
        "        await pending.taken()\n",
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
