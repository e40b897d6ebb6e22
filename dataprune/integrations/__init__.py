"""Trainers of other libraries on what a pruner selects; each module needs the extra of its name."""
