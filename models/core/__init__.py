"""Code that every run uses: the recommender, layout and attention, and the base classes of adapters, backbones and losses."""
