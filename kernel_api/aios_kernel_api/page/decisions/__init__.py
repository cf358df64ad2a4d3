"""Decisions on the page: approvals, what agents may do, quotas, policies; and the audit log."""
