"""The tests; they mirror the tree, and hazards have files of their own."""
