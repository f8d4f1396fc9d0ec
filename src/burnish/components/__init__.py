"""The six components. Each is reached through the component protocol only, and knows none of the others."""
