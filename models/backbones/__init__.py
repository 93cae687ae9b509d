"""Backbones: from a sequence of item vectors to a state that is compared with every item."""

BACKBONES = {
    "sasrec": "models.backbones.sasrec:SASRec",
}
