"""The network as mathematics. It imports no other room."""
