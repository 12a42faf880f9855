"""The studio and the REST interface: two doors on one service."""
