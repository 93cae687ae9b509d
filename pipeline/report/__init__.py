"""From cells to tables, tests, figures and the report."""
