"""Read untrusted files without executing code in them, and write files atomically."""
