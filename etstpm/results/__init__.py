"""For the people who read the results: queries over a store's tables, and what they mean."""
