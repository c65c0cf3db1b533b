"""Prefect flows: the wiring of the stages, and the command that runs them."""
