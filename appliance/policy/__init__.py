"""What an admin decided, as rules. Pure: no clock, no catalog, no repository."""
