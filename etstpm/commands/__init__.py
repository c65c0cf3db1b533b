"""The groups of the `etstpm` command, a module each.

What is slow to import is imported where it is used.
"""
