"""The mutants of workspaces: what is followed, what is told, what is written back."""

from tests.mutants.catalogue import Mutant

FOLDER = "workers/aios_workers/modules/tool/workspace/"
FOLDER_TEST = "tests/unit/test_workspace_folder.py"
CHANGES_TEST = "tests/unit/test_workspace_changes.py"
APPLY_TEST = "tests/integration/test_storage_apply.py"
COMMITS = "workers/aios_workers/modules/tool/sessions/commits.py"
DEATHS_TEST = "tests/faults/test_commit_deaths.py"
APPLY = "workers/aios_workers/modules/storage/changes.py"

WORKSPACE_MUTANTS = (
    Mutant(
        "workspace: a file that becomes a link is not followed",
        FOLDER + "walk.py",
        "_READ = os.O_RDONLY | os.O_NOFOLLOW |",
        "_READ = os.O_RDONLY |",
        FOLDER_TEST,
    ),
    Mutant(
        "workspace: a pipe keeps nobody waiting",
        FOLDER + "walk.py",
        " | os.O_NONBLOCK",
        "",
        FOLDER_TEST + "::test_a_file_that_becomes_a_pipe_meanwhile_keeps_nobody_waiting",
    ),
    Mutant(
        "workspace: a folder that becomes a link is not entered",
        FOLDER + "folder.py",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW |",
        "_FOLDER = os.O_RDONLY | os.O_DIRECTORY |",
        FOLDER_TEST,
    ),
    Mutant(
        "workspace: a link in a folder's place is replaced, not followed",
        FOLDER + "folder.py",
        "        if stat.S_ISDIR(_mode(folder, name)):\n            return\n        os.unlink",
        "        if os.path.isdir(f'/proc/self/fd/{folder}/{name}'):\n            return\n"
        "        os.unlink",
        FOLDER_TEST,
    ),
    Mutant(
        "workspace: content decides what is another file",
        FOLDER + "walk.py",
        "if self._digests.get(path) == sha256:",
        "if self._sizes.get(path) == size:",
        FOLDER_TEST,
    ),
    Mutant(
        "workspace: a file of more than one name is told",
        FOLDER + "walk.py",
        "if status.st_nlink > 1:",
        "if False:",
        FOLDER_TEST,
    ),
    Mutant(
        "workspace: a sparse file is not read",
        FOLDER + "walk.py",
        "if size > self._most_bytes and self._sizes.get(path) != size:",
        "if False:",
        FOLDER_TEST + "::test_a_sparse_file_is_not_read",
    ),
    Mutant(
        "workspace: nothing behind what cannot be looked into is called removed",
        FOLDER + "changes.py",
        "        if one.why:\n            closed.append(one.path)\n        elif",
        "        if",
        CHANGES_TEST,
    ),
    Mutant(
        "workspace: what is not the agent's own is not committed",
        FOLDER + "changes.py",
        '"refused" if before.foreign else "removed"',
        '"removed"',
        CHANGES_TEST,
    ),
    Mutant(
        "workspace: a name that storage writes otherwise is told",
        FOLDER + "names.py",
        'if normal != f"/{path}":',
        "if False:",
        CHANGES_TEST,
    ),
    Mutant(
        "workspace: what was put there is told, ignored or not",
        FOLDER + "changes.py",
        "if before is None and matches_any(ignore",
        "if matches_any(ignore",
        CHANGES_TEST,
    ),
    Mutant(
        "storage.apply: a version is held against what is there",
        APPLY,
        "if change.if_version is not None and change.if_version != version:",
        "if False:",
        APPLY_TEST,
    ),
    Mutant(
        "storage.apply: a digest is held against what is there",
        APPLY,
        "file is None or file.sha256 != change.if_sha256",
        "file is None",
        APPLY_TEST,
    ),
    Mutant(
        "storage.apply: what goes makes room for what comes",
        APPLY,
        "order = sorted(range(len(changes)), key=lambda at: changes[at].content is not None)",
        "order = list(range(len(changes)))",
        APPLY_TEST,
    ),
    Mutant(
        "storage.apply: a person sees the files that are new, too",
        APPLY,
        "    taken.insert(0, shown)",
        "    assert shown",
        APPLY_TEST,
    ),
    Mutant(
        "workspace: a commit that was begun is not lost with its session",
        COMMITS,
        "        if not _is_begun(decided):\n",
        "        if True:\n",
        DEATHS_TEST
        + "::test_what_was_decided_before_storage_was_asked_is_written_by_another_worker",
    ),
    Mutant(
        "workspace: who says that nothing was written decides that",
        COMMITS,
        "lambda: self._records.decided(syscall, CommitRecord()))\n",
        "lambda: self._records.one(syscall)) or CommitRecord()\n",
        DEATHS_TEST + "::test_a_worker_that_was_taken_for_dead_writes_nothing_after_that_was_said",
    ),
    Mutant(
        "workspace: a commit that is run again writes what it had decided to",
        COMMITS,
        "        decided = await patiently(lambda: self._records.one(syscall))\n",
        "        decided: CommitRecord | None = None\n",
        DEATHS_TEST + "::test_a_commit_that_is_run_again_when_it_was_done_says_what_it_wrote",
    ),
)
