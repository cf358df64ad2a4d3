"""The mutants of the cores' file: what it says, how it is changed, what a key is shown to."""

from tests.mutants.catalogue import Mutant

CATALOGUE_TEST = "tests/unit/test_catalogue.py"
FILE_TEST = "tests/unit/test_cores_file.py"

CORE_MUTANTS = (
    Mutant(
        "cores: a core that is wrong takes no other with it",
        "broker/aios_broker/catalogue.py",
        "            del cores[name]\n",
        "            cores.clear()\n",
        CATALOGUE_TEST + "::test_a_circle_of_fallbacks_takes_nobody_else_with_it",
    ),
    Mutant(
        "cores: a key is one word",
        "broker/aios_broker/catalogue.py",
        'not character.isprintable() or character == " "',
        "False",
        CATALOGUE_TEST + "::test_a_key_that_is_none_is_refused_and_not_told",
    ),
    Mutant(
        "cores: what would make the file wrong is not written",
        "broker/aios_local/cores_file.py",
        "                raise problem\n",
        "                continue\n",
        FILE_TEST + "::test_what_would_be_wrong_is_not_written",
    ),
    Mutant(
        "cores: one command changes the file at a time",
        "broker/aios_local/toml_file.py",
        "            if not wait_for(lambda: try_lock(lock), LOCK_LIMIT_S):\n",
        "            if False:\n",
        FILE_TEST + "::test_somebody_who_holds_the_lock_is_not_waited_for_for_ever",
    ),
)
