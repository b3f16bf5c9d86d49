"""What makes the paper's five files fast; the figure does not need it."""
