"""Everything that is trained: projector, scoring module, attention, adapter."""
