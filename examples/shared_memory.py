"""One agent shares its memory with a group, another finds it; then a deletion asks a person.

aios up --detach
python examples/shared_memory.py              prints how to approve, and waits for you
python examples/shared_memory.py --approve    an administrator agent approves it
"""

import argparse
import time
import uuid

from aios_sdk import Agent, Approval, ApprovalDenied, DeadlineExceeded

WAIT_S = 300.0
MEMBERS_WAIT_S = 60.0


def main(*, approve: bool) -> None:
    """Run it in a tenant of its own: nothing else is touched."""
    tenant = f"example-{uuid.uuid4().hex[:8]}"
    with (
        Agent("ada", tenant=tenant) as ada,
        Agent("bob", tenant=tenant) as bob,
        Agent("boss", tenant=tenant) as boss,
    ):
        boss.access.register("boss")  # the first one is the tenant's administrator
        bob.access.whoami()  # makes bob known

        note = ada.memory.add("The launch is on 3 May, in the old harbour.", tags=("launch",))
        ada.memory.add("The caterer is called Lindqvist.", tags=("launch",))
        ada.access.group_create("team")
        joining = ada.access.group_add.start("team", "bob")
        decide(boss, joining.id)  # privileges need a person; here an administrator is one
        joining.result(timeout_s=MEMBERS_WAIT_S)
        ada.memory.share(group="team")

        found = bob.memory.search("on which date do we begin?", k=1, shared=True).notes[0]
        print(f"bob found, by {found.owner}: {found.content}")

        deleting = ada.with_options(deadline_s=WAIT_S).memory.remove.start(note.id)
        waiting = approval_of(boss, deleting.id)
        print(f"ada waits for a person: {waiting.what}")
        if approve:
            boss.access.approve(waiting.id)
        else:
            print(f"decide: aios approve {waiting.id[:8]}   or   aios deny {waiting.id[:8]}")
        try:
            deleting.result(timeout_s=WAIT_S)
            print("it was approved, the note is gone")
        except (ApprovalDenied, DeadlineExceeded) as error:
            print(f"the note stays: {error}")


def decide(boss: Agent, syscall_id: str) -> None:
    """Approve what a syscall asks for."""
    boss.access.approve(approval_of(boss, syscall_id).id)


def approval_of(boss: Agent, syscall_id: str) -> Approval:
    """Return the request of a syscall, once it is there."""
    give_up_at = time.monotonic() + MEMBERS_WAIT_S
    while time.monotonic() < give_up_at:
        for approval in boss.access.approvals().approvals:
            if approval.syscall_id == syscall_id:
                return approval
        time.sleep(0.1)
    raise SystemExit("the request did not come: is the state worker running? (aios status)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--approve", action="store_true", help="have an agent approve the deletion")
    main(approve=parser.parse_args().approve)
