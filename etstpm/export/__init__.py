"""Students that travel: a detector as one file that needs neither etstpm nor its store."""
