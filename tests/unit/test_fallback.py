"""Who goes on when a core has failed: a rule, whatever the chains are."""

from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.cores import CoreCard
from aios_workers.llm.core import CoreInfo
from aios_workers.llm.fallback import Progress, next_core

NAMES = ("a", "b", "c", "d", "e")
CARDS = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(
        st.lists(st.sampled_from(NAMES), max_size=4, unique=True), st.sampled_from(["m", "n"])
    ),
)
PROGRESS = st.builds(
    Progress, begun=st.booleans(), streamed=st.booleans(), snapshot=st.none() | st.just(b"so far")
)


def core(name: str, model: str = "m") -> CoreInfo:
    return CoreInfo(name=name, model=model, fingerprint="f", slots=1, context_tokens=1_024)


def card(name: str, *fallback: str, model: str = "m") -> CoreCard:
    return CoreCard(
        name=name, model=model, snapshot_model=core(name, model).snapshot_model, fallback=fallback
    )


def cards(*each: CoreCard) -> dict[str, CoreCard]:
    return {one.name: one for one in each}


@given(CARDS, PROGRESS)
def test_a_syscall_goes_from_core_to_core_at_most_once(
    chains: dict[str, tuple[list[str], str]], progress: Progress
) -> None:
    living = cards(*(card(n, *chain, model=model) for n, (chain, model) in chains.items()))
    at, model = "a", "m"
    tried: list[str] = []
    while (name := next_core(core(at, model), tried, living, progress)) is not None:
        assert name in living
        assert name not in (at, *tried)
        if progress.begun:
            assert living[name].model == model
            assert progress.snapshot is not None or not progress.streamed
        tried.append(at)
        at, model = name, living[name].model
    assert len(tried) < len(NAMES)


def test_the_order_is_that_of_the_chain_then_of_those_before() -> None:
    living = cards(card("a", "b", "d"), card("b", "c"), card("c"), card("d"))
    assert next_core(core("a"), (), living, Progress()) == "b"
    assert next_core(core("b"), ("a",), living, Progress()) == "c"
    assert next_core(core("c"), ("a", "b"), living, Progress()) == "d"
    assert next_core(core("d"), ("a", "b", "c"), living, Progress()) is None


def test_what_was_read_goes_on_only_from_a_snapshot() -> None:
    living = cards(card("a", "b", "c"), card("b", model="n"), card("c"))
    assert next_core(core("a"), (), living, Progress()) == "b"
    begun = Progress(begun=True, streamed=True, snapshot=b"so far")
    assert next_core(core("a"), (), living, begun) == "c"
    read = Progress(begun=True, streamed=True)
    assert next_core(core("a"), (), living, read) is None
    unread = Progress(begun=True)
    assert next_core(core("a"), (), living, unread) == "c"


def test_snapshots_of_another_build_are_not_read() -> None:
    other = CoreCard(name="b", model="m", snapshot_model="m#other")
    living = cards(card("a", "b"), other)
    begun = Progress(begun=True, streamed=True, snapshot=b"so far")
    assert next_core(core("a"), (), living, begun) is None
