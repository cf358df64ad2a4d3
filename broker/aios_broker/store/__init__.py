"""What must last beyond Redis: agents, grants, notes, files, approvals, the audit, effects."""
