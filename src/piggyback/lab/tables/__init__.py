"""Tables, plots and task cards of what was trained."""
