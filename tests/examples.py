"""Which examples a random test takes: the same ones each time, unless a mutant is judged again.

`tests/mutants/run.py` sets MUTANT where a test is to stop at its first failure, and, where a mutant
survived the usual examples, MUTANT_SEED and Hypothesis' own `--hypothesis-seed` for other ones.
"""

import os

from hypothesis import Phase

AT_MUTANTS = "MUTANT" in os.environ
SAME_EACH_TIME = "MUTANT_SEED" not in os.environ  # Hypothesis' `derandomize`
PHASES = (Phase.explicit, Phase.generate) if AT_MUTANTS else tuple(Phase)
