"""The work of the stages, one module per noun of the domain."""
