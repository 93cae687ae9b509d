"""The test of a trained run, and the analysis of what its adapter learned."""
