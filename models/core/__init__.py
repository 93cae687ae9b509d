"""What every run reads: the recommender, its loss, layout and attention, and the base classes of adapters and backbones."""
