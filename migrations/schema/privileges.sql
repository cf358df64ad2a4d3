-- What a session may even try; which rows of a table, row-level security decides.

-- The steward: everything, but that the audit log is only added to.
GRANT SELECT, INSERT ON audit TO aios_steward;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON tenant, agent, agent_token, privilege_group, membership, access_grant,
       approval, approval_rule, effect,
       embedding_model, memory_block, note, note_version,
       directory, file, blob, file_version, file_chunk, share_link,
       mount, mount_file, mount_chunk
    TO aios_steward;

GRANT SELECT, INSERT ON kernel_secret TO aios_steward;

-- An agent. Owners and tenants of rows never change; lines of the audit log are the steward's.
GRANT SELECT
    ON tenant, agent, agent_token, privilege_group, membership, access_grant,
       approval, approval_rule, audit, effect,
       embedding_model, memory_block, note, note_version,
       directory, file, blob, file_version, file_chunk, share_link,
       mount, mount_file, mount_chunk
    TO aios_agent;
GRANT INSERT
    ON privilege_group, membership, access_grant, approval, approval_rule, effect,
       memory_block, note, note_version,
       directory, file, blob, file_version, file_chunk, share_link, mount
    TO aios_agent;
GRANT UPDATE
    ON approval, approval_rule, memory_block, note_version, file_version, file_chunk, mount
    TO aios_agent;
GRANT DELETE
    ON privilege_group, membership, access_grant, approval_rule,
       memory_block, note, note_version,
       directory, file, blob, file_version, file_chunk, share_link, mount
    TO aios_agent;

GRANT UPDATE (storage_used_bytes) ON agent TO aios_agent;
GRANT UPDATE (role) ON membership TO aios_agent;
GRANT UPDATE (program, content, keywords, tags, category, context, links, metadata, version,
    updated_at, expires_at, words, model_id, vector) ON note TO aios_agent;
GRANT UPDATE (ancestors, path) ON directory TO aios_agent;
GRANT UPDATE (directory_id, path, version, size_bytes, sha256, updated_at, locked_by, locked_until)
    ON file TO aios_agent;
