"""One agent shares its memory with a group, another finds it; then a deletion asks a person.

aios up --detach
python examples/shared_memory.py                          prints how to approve, and waits for you

aios agents allow judge decide --tenant example-1         let an agent decide for the others
python examples/shared_memory.py --tenant example-1 --judge judge
"""

import argparse
import time
import uuid

from aios_sdk import Agent, Approval, ApprovalDenied, DeadlineExceeded

WAIT_S = 300.0
ASKED_WITHIN_S = 60.0


def main(tenant: str, judge: str | None) -> None:
    """Run it in a tenant of its own: nothing else is touched."""
    with Agent("ada", tenant=tenant) as ada, Agent("bob", tenant=tenant) as bob:
        bob.access.whoami()  # makes bob known

        note = ada.memory.add("The launch is on 3 May, in the old harbour.", tags=("launch",))
        ada.memory.add("The caterer is called Lindqvist.", tags=("launch",))
        ada.access.group_create("team")
        joining = ada.with_options(deadline_s=WAIT_S).access.group_add.start("team", "bob")
        have_decided(ada, joining.id, judge)  # who is in a group needs a person, too
        joining.result(timeout_s=WAIT_S)
        ada.memory.share(group="team")

        found = bob.memory.search("on which date do we begin?", k=1, shared=True).notes[0]
        print(f"bob found, by {found.owner}: {found.content}")

        deleting = ada.with_options(deadline_s=WAIT_S).memory.remove.start(note.id)
        have_decided(ada, deleting.id, judge)
        try:
            deleting.result(timeout_s=WAIT_S)
            print("it was approved, the note is gone")
        except (ApprovalDenied, DeadlineExceeded) as error:
            print(f"the note stays: {error}")


def have_decided(ada: Agent, syscall_id: str, judge: str | None) -> None:
    """Say what waits for a person, and how to decide; or let the agent that may approve it."""
    waiting = approval_of(ada, syscall_id)
    print(f"ada waits for a person: {waiting.what}")
    if judge is None:
        print(f"decide: aios approve {waiting.id[:8]}   or   aios deny {waiting.id[:8]}")
        return
    with Agent(judge, tenant=waiting.tenant) as decider:
        decider.access.approve(waiting.id)


def approval_of(ada: Agent, syscall_id: str) -> Approval:
    """Return the request of a syscall, once it is there."""
    give_up_at = time.monotonic() + ASKED_WITHIN_S
    while time.monotonic() < give_up_at:
        for approval in ada.access.approvals().approvals:
            if approval.syscall_id == syscall_id:
                return approval
        time.sleep(0.1)
    raise SystemExit("the request did not come: is the state worker running? (aios status)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tenant", default=f"example-{uuid.uuid4().hex[:8]}")
    parser.add_argument("--judge", help="an agent that the operator lets decide; else you do")
    chosen = parser.parse_args()
    main(chosen.tenant, chosen.judge)
