"""Model cards: what an embedded checkpoint is worth, measured from the files that are shipped.

A model card (Mitchell et al., arXiv 1810.03993) says what a model was made for, how well it does
that, by kind of input, and where it fails. Here no number of a card is typed: `evaluation` asks
the checkpoint everything about held-out scenes through the code that users run, `several` what only
a OneVision can be asked, and `card` writes the answer beside the weights or holds a quicker one
against it.

To measure takes the world (`redlib.tabletop`) and the metrics (`redlib.bench`), so cards lie above
both; training, which lies in `tabletop`, knows nothing of them.
"""
