"""The mutants of the tools that come with the kernel: what they refuse, and where they end."""

from tests.mutants.catalogue import Mutant

CALCULATOR_TEST = "tests/unit/test_calculator.py"
TOOLS_TEST = "tests/integration/test_kernel_tools.py"
FILES_TEST = "tests/integration/test_stored_files.py"
FETCH_TEST = "tests/integration/test_http_fetch.py"
FOLDER = "workers/aios_workers/modules/tool/"
OWN = FOLDER + "kernel_tools/"

KERNEL_TOOL_MUTANTS = (
    Mutant(
        "calculator: a power is estimated before it is worked out",
        OWN + "calculator/bounds.py",
        "        if digits > MOST_DIGITS:\n",
        "        if False:\n",
        CALCULATOR_TEST + "::test_what_will_not_do_is_said_in_words",
    ),
    Mutant(
        "calculator: what is no part of a calculation is not read",
        OWN + "calculator/grammar.py",
        "    if not isinstance(node, _NODES):\n",
        "    if False:\n",
        CALCULATOR_TEST + "::test_no_other_node_is_read_at_all",
    ),
    Mutant(
        "calculator: a decimal is the number that it says",
        OWN + "calculator/calculator.py",
        'value = Rational(int(whole + part or "0"), 10 ** len(part))',
        "value = Rational(float(digits))",
        CALCULATOR_TEST + "::test_what_it_finds_is_exact",
    ),
    Mutant(
        "kernel tools: one that is switched off is not there",
        FOLDER + "kernel_tool_entries.py",
        "        if name not in catalogue.off and name not in problems:\n",
        "        if name not in problems:\n",
        TOOLS_TEST + "::test_one_that_is_switched_off_is_not_there",
    ),
    Mutant(
        "kernel tools: a file that cannot be read leaves none on",
        FOLDER + "kernel_tool_entries.py",
        "    if FILE_NAME in catalogue.problems:\n",
        "    if False:\n",
        TOOLS_TEST + "::test_a_file_that_cannot_be_read_leaves_none_on",
    ),
    Mutant(
        "kernel tools: their names are nobody else's",
        "broker/aios_broker/tool_catalogue.py",
        "    if name.startswith(KERNEL_TOOLS):\n",
        "    if False:\n",
        "tests/unit/test_tools_file.py::test_what_is_wrong_is_named_and_the_other_tools_stay",
    ),
    Mutant(
        "kernel tools: code does not run without a sandbox",
        FOLDER + "processes.py",
        'if self._sandbox.kind == "none" and card.runs_code and not self._without_sandbox:',
        "if False:",
        TOOLS_TEST + "::test_code_needs_a_sandbox_unless_the_operator_goes_without",
    ),
    Mutant(
        "kernel tools: a run that lasts too long is an answer",
        OWN + "children.py",
        "                timed_out = True\n                _kill(pid)\n",
        "                timed_out = True\n",
        TOOLS_TEST + "::test_a_bomb_is_an_answer",
    ),
    Mutant(
        "kernel tools: an error names the argument that is to be mended",
        FOLDER + "processes.py",
        "        _raise_for_its_caller(program.card.name, why)\n",
        "",
        TOOLS_TEST + "::test_what_an_argument_does_wrong_is_told_for_a_repair",
    ),
    Mutant(
        "stored files: what a call reads is bounded",
        FOLDER + "stored_files.py",
        "    if size > MOST_BYTES:\n",
        "    if False:\n",
        FILES_TEST + "::test_what_is_read_is_bounded",
    ),
    Mutant(
        "sqlite: a query only reads",
        OWN + "sqlite/guard.py",
        "        return sqlite3.SQLITE_DENY\n",
        "        return sqlite3.SQLITE_OK\n",
        FILES_TEST + "::test_a_query_only_reads_and_ends",
    ),
    Mutant(
        "sqlite: a query ends",
        OWN + "sqlite/guard.py",
        "lambda: time.monotonic() > until",
        "lambda: False",
        FILES_TEST + "::test_a_query_only_reads_and_ends",
    ),
    Mutant(
        "text search: a pattern is one of an engine without exponential time",
        OWN + "text_search/patterns.py",
        '    text = f"(?i:{pattern})" if ignore_case else pattern\n',
        "    return lambda line: re.search(pattern, line) is not None\n",
        FILES_TEST + "::test_no_pattern_takes_exponential_time",
    ),
    Mutant(
        "fetch: a refusal of the way out says which rule to write",
        OWN + "http_fetch/http_fetch.py",
        '    if found.get(_REFUSED) == "refused":\n',
        "    if False:\n",
        FETCH_TEST + "::test_it_reads_what_a_rule_names",
    ),
)
