"""Privilege groups: the truth in Postgres, and a hash map of it in Redis for who looks there."""

from __future__ import annotations

from typing import Any

import msgspec

from aios_broker.contract.access import (
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupDelete,
    AccessGroupRemove,
    Acknowledged,
    Group,
    GroupRole,
    Groups,
)
from aios_broker.contract.errors import AlreadyExists, NotFound
from aios_broker.contract.reply import Result
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.session import Cursor
from aios_workers.access.groups_map import GroupsMap
from aios_workers.access.identity import denied, is_administrator
from aios_workers.gate import Irreversible
from aios_workers.once import once
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked

_LIST = """
    SELECT p.name, a.name AS member, m.role FROM privilege_group p
      LEFT JOIN membership m ON m.group_id = p.id LEFT JOIN agent a ON a.id = m.agent_id
     WHERE p.tenant_id = %s ORDER BY p.name, a.name
"""
_FIND = """
    SELECT p.id, m.role FROM privilege_group p
      LEFT JOIN membership m ON m.group_id = p.id AND m.agent_id = %s
     WHERE p.tenant_id = %s AND p.name = %s
"""
_CREATE = """
    INSERT INTO privilege_group (tenant_id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING
    RETURNING id
"""
_JOIN = """
    INSERT INTO membership (group_id, agent_id, role) VALUES (%s, %s, %s)
    ON CONFLICT (group_id, agent_id) DO UPDATE SET role = excluded.role
"""
_LEAVE = "DELETE FROM membership WHERE group_id = %s AND agent_id = %s"
_DELETE = "DELETE FROM privilege_group WHERE id = %s"


class GroupDesk:
    """groups, group_create, group_delete, group_add, group_remove."""

    def __init__(self, ground: StateGround, map_: GroupsMap) -> None:
        self._ground = ground
        self._map = map_

    async def groups(self, asked: Asked) -> Result:
        """List the groups of the tenant with their members."""
        members: dict[str, dict[str, GroupRole]] = {}
        async with self._ground.store.as_agent(asked.agent) as cursor:
            await cursor.execute(_LIST, (asked.agent.tenant_id,))
            for row in await cursor.fetchall():
                group = members.setdefault(row.name, {})
                if row.member is not None:
                    group[row.member] = row.role
        return Groups(tuple(Group(name, roles) for name, roles in members.items()))

    async def create(self, asked: Asked) -> Result:
        """Make a group; who makes it is its first administrator."""
        body: AccessGroupCreate = asked.body

        async def work(cursor: Cursor) -> Result:
            await cursor.execute(_CREATE, (asked.agent.tenant_id, body.group))
            row = await cursor.fetchone()
            if row is None:
                raise AlreadyExists(
                    f"there is a group {body.group!r} already", field="group",
                    remedy="choose another name, or have its administrator add you",
                )  # fmt: skip
            await cursor.execute(_JOIN, (row.id, asked.agent.id, "admin"))
            await self._enter(cursor, asked, f"group {body.group}")
            return Acknowledged()

        return await self._then_map(asked, work)

    async def delete(self, asked: Asked) -> Result:
        """Delete a group, and all grants to it with it."""
        body: AccessGroupDelete = asked.body

        async def work(cursor: Cursor) -> Result:
            group = await self._administered(cursor, asked)
            await self._check(cursor, asked, f"delete group {body.group} and all grants to it")
            await cursor.execute(_DELETE, (group.id,))
            return Acknowledged()

        return await self._then_map(asked, work)

    async def add(self, asked: Asked) -> Result:
        """Put an agent into a group, or change its role there."""
        body: AccessGroupAdd = asked.body
        member = await self._ground.store.agent(body.agent, asked.agent.tenant)

        async def work(cursor: Cursor) -> Result:
            group = await self._administered(cursor, asked)
            await self._check(
                cursor, asked, f"make agent {body.agent} {body.role} of group {body.group}"
            )
            await cursor.execute(_JOIN, (group.id, member.id, body.role))
            return Acknowledged()

        return await self._then_map(asked, work)

    async def remove(self, asked: Asked) -> Result:
        """Take an agent out of a group; oneself without asking anybody."""
        body: AccessGroupRemove = asked.body
        member = await self._ground.store.agent(body.agent, asked.agent.tenant)

        async def work(cursor: Cursor) -> Result:
            if member.id == asked.agent.id:
                group = await self._found(cursor, asked)
                await self._enter(cursor, asked, f"left group {body.group}")
            else:
                group = await self._administered(cursor, asked)
                await self._check(
                    cursor, asked, f"take agent {body.agent} out of group {body.group}"
                )
            await cursor.execute(_LEAVE, (group.id, member.id))
            return Acknowledged(changed=cursor.rowcount > 0)

        return await self._then_map(asked, work)

    async def _then_map(self, asked: Asked, work: Any) -> Result:  # noqa: ANN401
        result = await once(self._ground.store, asked, work)
        await self._map.refresh()
        return result

    async def _found(self, cursor: Cursor, asked: Asked) -> Any:  # noqa: ANN401  a row
        group: str = asked.body.group
        await cursor.execute(_FIND, (asked.agent.id, asked.agent.tenant_id, group))
        row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"there is no group {group!r}", field="group",
                           remedy="see which there are: access.groups")  # fmt: skip
        return row

    async def _administered(self, cursor: Cursor, asked: Asked) -> Any:  # noqa: ANN401  a row
        row = await self._found(cursor, asked)
        if row.role != "admin" and not await is_administrator(cursor, asked.agent):
            raise denied(f"changing group {asked.body.group!r}, whose administrator you are not,")
        return row

    async def _check(self, cursor: Cursor, asked: Asked, what: str) -> None:
        await self._ground.gate.check(
            cursor, asked.agent, asked.syscall, asked.body, Irreversible("privilege", what)
        )

    async def _enter(self, cursor: Cursor, asked: Asked, what: str) -> None:
        await append_line(cursor, AuditLine(
            asked.agent.tenant, asked.agent.name, asked.syscall.kind, what, "done",
            asked.syscall.id, msgspec.to_builtins(asked.body),
        ))  # fmt: skip
