-- Nodes that tenants enrol themselves: theirs alone for ever. `node_image.owned_by` is the node's owner, or
-- empty, so that what such a node says of images is asked of its owner alone without another look-up.
ALTER TABLE join_token ADD COLUMN tenant_id TEXT REFERENCES tenant;
ALTER TABLE node ADD COLUMN owned_by TEXT REFERENCES tenant;
ALTER TABLE node_image ADD COLUMN owned_by TEXT NOT NULL DEFAULT '';
CREATE INDEX join_token_of_tenant ON join_token (tenant_id) WHERE tenant_id IS NOT NULL;
CREATE INDEX node_of_tenant ON node (owned_by, node_id) WHERE owned_by IS NOT NULL;
