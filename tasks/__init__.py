"""Thin Prefect tasks, one a stage: resolve inputs, call one library function, return a key."""
