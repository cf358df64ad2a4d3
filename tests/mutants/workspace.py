"""The mutants of workspaces: what is followed, what is told, what is written back."""

from tests.mutants.catalogue import Mutant

FOLDER = "workers/aios_workers/modules/tool/workspace/"
FOLDER_TEST = "tests/unit/test_workspace_folder.py"
CHANGES_TEST = "tests/unit/test_workspace_changes.py"
APPLY_TEST = "tests/integration/test_storage_apply.py"
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
)
