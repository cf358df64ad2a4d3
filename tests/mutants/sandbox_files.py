"""The mutants of what sandboxes write: what bounds it, what is seen of it, what is left."""

from tests.mutants.catalogue import Mutant

TEST = "tests/integration/test_sandbox_files.py"
FOLDER = "workers/aios_workers/modules/tool/"
ANYWHERE = TEST + "::test_what_is_written_anywhere_ends_at_the_limit"
ENDS = TEST + "::test_a_sandbox_that_ends_while_it_is_looked_at_is_not_an_empty_one"
LEFT = TEST + "::test_nothing_of_a_call_is_there_for_the_next"

SANDBOX_FILES_MUTANTS = (
    Mutant(
        "sandbox files: what is beside a call's folder, or has no name, counts",
        FOLDER + "kept_process.py",
        "        return used.size_bytes > most.size_bytes or used.count > most.count\n",
        "        return False\n",
        ANYWHERE,
    ),
    Mutant(
        "sandbox files: they are many at most, wherever they lie",
        FOLDER + "sandbox_files.py",
        "            sum(one.f_files - one.f_ffree for one in found),\n",
        "            0,\n",
        ANYWHERE + "[20.0-many]",
    ),
    Mutant(
        "sandbox files: no room on the device is the limit",
        FOLDER + "process/calls.py",
        "_NO_MORE = (errno.EFBIG, errno.ENOSPC)",
        "_NO_MORE = (errno.EFBIG,)",
        ANYWHERE + "[20.0-tmp]",
    ),
    Mutant(
        "sandbox files: Linux bounds them",
        FOLDER + "sandbox/view.py",
        'return ["--size", str(most_bytes), "--perms", rights, "--tmpfs", path]',
        'return ["--perms", rights, "--tmpfs", path]',
        TEST + "::test_linux_refuses_it_before_anybody_looks",
    ),
    Mutant(
        "sandbox files: none that no file system counts",
        FOLDER + "sandbox/seccomp.py",
        '        "memfd_create": 319,\n',
        "",
        TEST + "::test_memory_that_is_a_file_of_no_folder_is_refused",
    ),
    Mutant(
        "sandbox files: nor System V's shared memory",
        FOLDER + "sandbox/seccomp.py",
        '        "shmget": 29,\n',
        "",
        TEST + "::test_memory_that_is_a_file_of_no_folder_is_refused",
    ),
    Mutant(
        "sandbox files: one that has ended is not an empty one",
        FOLDER + "sandbox_files.py",
        "            self._check()\n",
        "",
        ENDS,
    ),
    Mutant(
        "sandbox files: nothing is closed while it is looked at",
        FOLDER + "sandbox_files.py",
        "        if self._is_closed and not self._users:\n",
        "        if self._is_closed:\n",
        TEST + "::test_what_is_looked_at_is_closed_when_that_has_ended",
    ),
    Mutant(
        "sandbox files: what lies beside a call's folder goes with it",
        FOLDER + "sandbox_files.py",
        "                if kept and place != self._folder:\n",
        "                if place != self._folder:\n",
        LEFT,
    ),
    Mutant(
        "sandbox files: what others are mounted on stays",
        FOLDER + "sandbox_files.py",
        "if name not in before and name not in kept]",
        "if name not in kept]",
        TEST,
    ),
    Mutant(
        "sandbox files: of several calls all end where nobody knows whose it is",
        FOLDER + "processes.py",
        "            if await asyncio.to_thread(kept.is_full):\n",
        "            if False:\n",
        TEST + "::test_one_of_several_calls_that_fills_ends_them_and_the_next_runs",
    ),
    Mutant(
        "sandbox files: a link in a folder's place is not followed",
        FOLDER + "removal.py",
        "                take_away(opened, name)\n",
        "                for at, _, _ in os.walk(parent / name):\n"
        "                    os.chmod(at, 0o700)\n"
        "                take_away(opened, name)\n",
        TEST + "::test_a_link_in_the_place_of_its_folder_is_not_followed",
    ),
)
