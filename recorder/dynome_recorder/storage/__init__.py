"""What lies on disk: the format, the commit log, writing, reading, verifying and repairing. No torch here."""
