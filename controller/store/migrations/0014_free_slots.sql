-- Whether a node has a slot of a class that its host calls free, without looking at the class's others.
CREATE INDEX slot_free ON slot (node_id, class) WHERE host_state = 'free';
