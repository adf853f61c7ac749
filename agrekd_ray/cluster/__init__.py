"""Ray itself: the session, nodes and what they have room for, messages to the driver."""
