"""Backbones: from a sequence of item vectors to a state that is compared with every item."""

BACKBONES = {
    "sasrec": "models.backbones.sasrec:SASRec",
    "bert4rec": "models.backbones.bert4rec:BERT4Rec",
    "hstu": "models.backbones.hstu:HSTU",
}
