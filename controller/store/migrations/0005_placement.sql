-- Placement takes the node with the most memory left: its order, so that the first few rows are enough.
CREATE INDEX node_by_room ON node ((memory_mib - memory_used_mib) DESC, node_id);
-- The largest size that some node has of an image, without looking at all nodes.
CREATE INDEX node_image_by_size ON node_image (name, disk_mib);
