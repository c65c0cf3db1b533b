"""Thin Prefect tasks, one a stage: resolve inputs, call one library function, return a key.

None is cached by Prefect, even where persisted results are its default: the store knows what is
there, and Prefect's cache would replay a key whose artifact is gone or made by older code.
"""
