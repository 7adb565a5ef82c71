CREATE INDEX token_charge_age ON token_charge (tenant_id, expires_at);
-- Tokens issued before they were charged. Those that have expired since go with the next one's charge.
INSERT INTO token_charge (tenant_id, project_id, token_id, expires_at)
    SELECT t.tenant_id, 'default', t.token_id, t.expires_at FROM token t
    WHERE t.tenant_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM revocation r
      WHERE r.namespace = t.tenant_id AND ((r.kind = 'link' AND r.subject = t.token_id)
        OR (r.kind = 'holder' AND r.subject = t.subject_key)
        OR (r.kind = 'epoch' AND t.issued_at < r.min_not_before_s * 1000)));
UPDATE quota SET used = (SELECT COUNT(*) FROM token_charge c
      WHERE c.tenant_id = quota.tenant_id AND (quota.scope = '' OR c.project_id = quota.scope))
    WHERE resource = 'tokens';
