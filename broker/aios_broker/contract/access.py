"""What an agent may ask of the access module: who it is, groups, grants, approvals, the audit.

An agent's objects are its own and nobody else's until it grants a verb on one of them to an
agent or to a privilege group of its tenant. What cannot be taken back waits for a person.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from aios_broker.contract.names import (
    AgentName,
    GrantVerbs,
    GroupName,
    Request,
    SyscallId,
    Ttl,
    Verb,
)
from aios_broker.contract.tokens import shown_without_token

# What a grant is on: an agent's whole memory (its block), one note of it, or a file or a directory
# with all that is below it.
ObjectKind = Literal["block", "note", "file", "directory"]
# Operations that cannot be taken back, and so may need a person.
OperationClass = Literal["delete", "overwrite", "rollback", "clear", "privilege", "unshare", "tool"]
ApprovalState = Literal["waiting", "approved", "denied", "expired", "used"]
# ask: always. ask-when-lossy: only where something newer or not empty is lost. never: just do it.
ApprovalRule = Literal["ask", "ask-when-lossy", "never"]
Reason = Annotated[str, Meta(max_length=2_000)]
GroupRole = Literal["member", "admin"]
TokenDigest = Annotated[
    str, Meta(pattern=r"^(|[0-9a-f]{64})\Z")
]  # see `aios_broker.contract.tokens`


class ObjectRef(Request, frozen=True):
    """One object: of which kind, whose, and its note id or its path (a block has neither)."""

    kind: ObjectKind
    name: Annotated[str, Meta(max_length=4_096)] = ""
    owner: AgentName | None = None  # None: the agent that asks


class AccessWhoami(Request, frozen=True, tag="access.whoami"):
    """Return who the kernel takes the agent for: its tenant, groups, roles, and quotas."""


class AccessRegister(Request, frozen=True, tag="access.register"):
    """Make an agent of the caller's tenant known, and give it a token. For administrators.

    A token of an agent that is known already, and making an administrator, are of class
    `privilege`. The operator makes the first administrator; an agent that a trusted door vouches
    for is known from its first syscall on, without a token.
    """

    agent: AgentName
    administrator: bool = False
    ttl_s: Ttl | None = None  # of the token; None: it does not expire
    token_digest: TokenDigest = ""  # of the token that it is to have
    token: Annotated[str, Meta(max_length=256)] = ""  # the token; its client sends the digest

    def __repr__(self) -> str:
        """Return it without its token: it may come into a log."""
        return shown_without_token(self)


class AccessRevokeToken(Request, frozen=True, tag="access.revoke_token"):
    """Make all tokens of an agent worthless. For administrators, and for the agent itself."""

    agent: AgentName


class AccessGroups(Request, frozen=True, tag="access.groups"):
    """List the privilege groups of the tenant, with their members, by name."""

    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    after: GroupName | None = None  # the last one of the page before


class AccessGroupCreate(Request, frozen=True, tag="access.group_create"):
    """Make a privilege group; who makes it is its first administrator."""

    group: GroupName


class AccessGroupDelete(Request, frozen=True, tag="access.group_delete"):
    """Delete a privilege group and all grants to it (class `privilege`)."""

    group: GroupName


class AccessGroupAdd(Request, frozen=True, tag="access.group_add"):
    """Put an agent into a group, or change its role there (class `privilege`)."""

    group: GroupName
    agent: AgentName
    role: GroupRole = "member"


class AccessGroupRemove(Request, frozen=True, tag="access.group_remove"):
    """Take an agent out of a group (class `privilege`); leaving oneself needs nobody."""

    group: GroupName
    agent: AgentName


class AccessGrant(Request, frozen=True, tag="access.grant"):
    """Let an agent or a group do what the verbs say with an object (exactly one of the two)."""

    object: ObjectRef
    verbs: GrantVerbs
    agent: AgentName | None = None
    group: GroupName | None = None
    ttl_s: Ttl | None = None  # None: until it is revoked


class AccessRevoke(Request, frozen=True, tag="access.revoke"):
    """Take grants on an object back (class `unshare`); neither agent nor group: all of them."""

    object: ObjectRef
    agent: AgentName | None = None
    group: GroupName | None = None


class AccessGrants(Request, frozen=True, tag="access.grants"):
    """List grants: on the agent's own objects, or those that it holds on others'."""

    held: bool = False


class AccessCheck(Request, frozen=True, tag="access.check"):
    """Tell whether the agent may do something with an object, and by which grant."""

    object: ObjectRef
    verb: Verb


class AccessApprovals(Request, frozen=True, tag="access.approvals"):
    """List approvals: the agent's own; for administrators and who decides, all of the tenant.

    Agents take turns, of each the oldest comes first. Arguments of more than 2,000 characters are
    left out, but not of the one that is named.
    """

    state: ApprovalState | None = "waiting"  # None: all
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    after: SyscallId | None = None  # the last approval of the page before
    approval: SyscallId | None = None  # this one alone, whatever its state


class AccessApprove(Request, frozen=True, tag="access.approve"):
    """Let a parked syscall run, once. For agents that the operator lets decide for others.

    Never about what the agent asked for, by whomever: not for one that it registered or got a token
    of, nor for one that holds a grant of its own.
    """

    approval: SyscallId
    arguments: dict[str, Any] | None = None  # instead of those that were asked for: only narrower


class AccessDeny(Request, frozen=True, tag="access.deny"):
    """End a parked syscall with `approval-denied`. For who may approve it."""

    approval: SyscallId
    reason: Reason = ""


class AccessSetRule(Request, frozen=True, tag="access.set_rule"):
    """Say which operations of a class need a person (class `privilege`). For administrators."""

    operation: OperationClass
    rule: ApprovalRule | None  # None: forget the rule, what is wider holds again
    agent: AgentName | None = None  # None: for all agents of the tenant that have none of their own


class AccessRules(Request, frozen=True, tag="access.rules"):
    """Return the rules that hold for an agent, per class."""

    agent: AgentName | None = None  # None: the one that asks


class AccessAudit(Request, frozen=True, tag="access.audit"):
    """Return the newest entries of the audit log: the agent's own, for an administrator all."""

    agent: AgentName | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100


AccessBody = (
    AccessWhoami
    | AccessRegister
    | AccessRevokeToken
    | AccessGroups
    | AccessGroupCreate
    | AccessGroupDelete
    | AccessGroupAdd
    | AccessGroupRemove
    | AccessGrant
    | AccessRevoke
    | AccessGrants
    | AccessCheck
    | AccessApprovals
    | AccessApprove
    | AccessDeny
    | AccessSetRule
    | AccessRules
    | AccessAudit
)


# What comes back.


class HeldToken(Struct, frozen=True, omit_defaults=True):
    """A token that is good, without the token itself."""

    issued_by: str  # the agent that asked for it; empty: the operator
    issued_at: float  # Unix time, s
    expires_at: float | None = None


class Whoami(Struct, frozen=True, omit_defaults=True, tag="access.whoami"):
    """Who an agent is."""

    agent: str
    tenant: str
    administrator: bool
    groups: tuple[str, ...] = ()
    decides: bool = False  # whether the operator lets it decide for other agents
    tokens: tuple[HeldToken, ...] = ()  # of it, that are good: oldest first


class TokenIssued(Struct, frozen=True, omit_defaults=True, tag="access.token"):
    """A new token. It was made by the client that asked for it: the kernel has only its digest."""

    agent: str
    token: str = ""  # put in by the client
    expires_at: float | None = None  # Unix time, s


class Group(Struct, frozen=True, omit_defaults=True):
    """A privilege group and its members' roles."""

    name: str
    members: dict[str, GroupRole] = {}


class Groups(Struct, frozen=True, omit_defaults=True, tag="access.groups"):
    """Privilege groups, by name."""

    groups: tuple[Group, ...]
    more: bool = False  # after the last one there are others


class Grant(Struct, frozen=True, omit_defaults=True):
    """A grant as it stands; `to` is `agent:<name>` or `group:<name>`."""

    object: ObjectRef
    to: str
    verbs: tuple[str, ...]
    granted_by: str
    expires_at: float | None = None  # Unix time, s


class Grants(Struct, frozen=True, omit_defaults=True, tag="access.grants"):
    """Grants, newest first."""

    grants: tuple[Grant, ...]


class Verdict(Struct, frozen=True, omit_defaults=True, tag="access.verdict"):
    """Whether an access would be let through, and why."""

    allowed: bool
    why: str


# What `count` counts of a kind, one and many; of others it is told as it is.
_COUNTED = {
    "tree": ("thing in it", "things in it"),
    "notes": ("note", "notes"),
    "grants": ("grant", "grants"),
    "links": ("link", "links"),
    "tokens": ("token", "tokens"),
    "group": ("member or grant", "members and grants"),
    "plan": ("step", "steps"),
    "changes": ("change", "changes"),
}
_DIGITS_SHOWN = 12  # of a digest


def size_words(size_bytes: int) -> str:
    """Return a size as people read it, exact: `1 byte`, `1,234 bytes`."""
    return f"{size_bytes:,} byte{'' if size_bytes == 1 else 's'}"


class BoundObject(Struct, frozen=True):
    """One thing that a call takes away, as it was when a person was asked about it.

    Where it is another by the time that the call runs, a person is asked anew; what it is called
    then, and its size, are for who reads it.
    """

    operation: OperationClass  # how it goes
    kind: str  # note, notes, file, version, content, tree, mounted, grants, links, group, ...
    id: str
    version: int = 0
    count: int = 1  # of what it holds, where it is many
    digest: str = ""  # SHA-256, hex: of its content, or of the ids and versions of what it holds
    name: str = ""  # as people call it, such as `file /a.md`; empty: asked by an older release
    size_bytes: int | None = None

    @property
    def goes(self) -> bool:
        """Whether it is gone afterwards; else it is what changes, runs, or comes instead."""
        if self.kind in ("plan", "changes") or self._comes:
            return False
        return self.operation not in ("privilege", "tool")

    @property
    def _comes(self) -> bool:
        """Whether it is what comes in the place of another."""
        return self.kind == "source" or (self.operation == "rollback" and self.kind == "version")

    @property
    def words(self) -> str:
        """Return it as people read it, such as `delete: file /a.md, version 3, 120 bytes`."""
        how = "in its place" if self._comes else self.operation
        told = [self.name or f"{self.kind} {self.id}".rstrip()]
        if self.version and not (self.name and self.kind == "version"):
            told.append(f"version {self.version}")
        if self.kind in _COUNTED:
            told.append(f"{self.count} {_COUNTED[self.kind][self.count != 1]}")
        elif self.count > 1 and self.size_bytes is None:
            told.append(f"{self.count} in all")
        if self.size_bytes is not None:
            told.append(size_words(self.size_bytes))
        if self.digest:
            what = "version" if self.kind == "tool" else "sha256"
            told.append(f"{what} {self.digest[:_DIGITS_SHOWN]}")
        return f"{how}: {', '.join(told)}"


class Approval(Struct, frozen=True, omit_defaults=True):
    """One request for a person's approval.

    It is bound to the SHA-256 of the canonical arguments, and to what they would take away.
    """

    id: str
    state: ApprovalState
    syscall_id: str
    agent: str
    tenant: str
    kind: str  # the syscall's, such as storage.delete
    operation: OperationClass  # the first that asks; `objects` have each thing's own
    arguments: dict[str, Any]
    arguments_sha256: str
    what: str  # one line for the person who decides
    asked_at: float  # Unix time, s
    expires_at: float
    diff: str = ""  # what would be lost or changed, or what an edit changed, as a unified diff
    decided_by: str = ""
    decided_at: float | None = None
    reason: str = ""
    left_out: tuple[str, ...] = ()  # arguments too long for a list: name the approval to see them
    objects: tuple[BoundObject, ...] = ()  # what would go, as it was when it was asked


class Approvals(Struct, frozen=True, omit_defaults=True, tag="access.approvals"):
    """Approvals: tenants and their agents in turns, of each the oldest first.

    `more`: there are further ones after the last.
    """

    approvals: tuple[Approval, ...]
    more: bool = False


class Rules(Struct, frozen=True, omit_defaults=True, tag="access.rules"):
    """The rule per class of operations."""

    rules: dict[OperationClass, ApprovalRule]


class AuditEntry(Struct, frozen=True, omit_defaults=True):
    """One line of the audit log; `hash` covers it and the hash before it."""

    seq: int
    at: float  # Unix time, s
    tenant: str
    actor: str
    action: str
    object: str
    outcome: str
    syscall_id: str
    hash: str  # HMAC-SHA256 with the key of the kernel, hex
    detail: dict[str, Any] = {}


class Audit(Struct, frozen=True, omit_defaults=True, tag="access.audit"):
    """Entries of the audit log, newest first."""

    entries: tuple[AuditEntry, ...]


class Acknowledged(Struct, frozen=True, omit_defaults=True, tag="ok"):
    """It was done; `changed` is false where all was so already."""

    changed: bool = True


AccessResult = (
    Whoami | TokenIssued | Groups | Grants | Verdict | Approvals | Rules | Audit | Acknowledged
)
